-- Looks up the answer to a request: $1 scope, $2 key.
--
-- A statement of its own, after the one that takes the key's lock. In one statement, its snapshot would be
-- older than the lock: an answer committed in between would not be seen, and the request would run twice.
select fingerprint, status, header_names, header_values, body
from pillarbox.inbox_request
where scope operator(pg_catalog.=) $1 and key operator(pg_catalog.=) $2
