-- A later page of a window: what S' sees and S does not, after the last position read. scan.sql has the rest.
--
--   $7 S          $8 S'          $9 the last position read
with start as materialized (
    select $9::bigint as low
),
new as not materialized (
    select *, :flushed() as flushed
    from pillarbox.outbox
    where not :surely_seen($7) and :seen($8) and not :covered($4, $5::text[], $6::bigint[])
),
{page}
