-- Stores the answer in the handler's transaction: $1 scope, $2 key, $3 fingerprint, $4 status,
-- $5 header names, $6 header values, $7 body.
--
-- There is no `on conflict`. If two requests have run all the same (under a stricter isolation level, the snapshot of
-- `find` is older than the lock), the later one fails here, and everything that it wrote is undone.
insert into pillarbox.inbox_request (scope, key, fingerprint, status, header_names, header_values, body)
values ($1, $2, $3, $4, $5, $6, $7)
