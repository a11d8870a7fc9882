-- Moves what is due into the outbox; the function is explained where it is created, in the outbox's migrations.
--
--   $1 relay name   $2 epoch   $3 rows at the most   $4 each row alone   $5 what was due before that is not looked for
select leads, released, failed, next_due_in, retries, behind
from pillarbox.release_scheduled($1, $2, $3, $4, $5)
