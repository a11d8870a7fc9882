-- Looks up the answer to a request: $1 scope, $2 key.
--
-- It is a statement of its own, after the one that takes the key's lock. In one statement, the snapshot would be older
-- than the lock: it would not see an answer that was committed in between, and the request would run twice.
select fingerprint, status, header_names, header_values, body
from pillarbox.inbox_request
where scope operator(pg_catalog.=) $1 and key operator(pg_catalog.=) $2
