-- Whether the outbox is still the table that table.sql found, with the same sequence and file. Each page's statement asks
-- this. It costs a third of what table.sql costs, which would be a quarter of a page without rows.
--
-- The sequence is 0 once the column may have another one. The relay then looks by table.sql. A change of the column that
-- has nothing to do with its sequence leads there, too, and to nothing else.
select
    'pillarbox.outbox'::regclass::oid::bigint as relation,
    case
        when (
            select pg_attribute.xmin::text
            from pg_attribute
            where pg_attribute.attrelid = 'pillarbox.outbox'::regclass and pg_attribute.attname = 'position'
        ) = '{defined}'
            then {sequence}::bigint
        else 0::bigint
    end as sequence,
    pg_relation_filenode({sequence}::oid)::bigint as file
