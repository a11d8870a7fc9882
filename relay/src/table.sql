-- Which table is the outbox, which sequence gives out its positions, and which file that sequence has.
--
-- A table can be swapped for another one by renaming the two, and a column can get another sequence. The names stay the
-- same then, and the oids do not. TRUNCATE ... RESTART IDENTITY and ALTER SEQUENCE ... RESTART give the sequence a new file;
-- setval does not.
--
-- The sequence is that of the column's default, or else that of its identity. `like ... including all` makes a new one for
-- the identity of the copy.
--
-- `defined` is the transaction that wrote the column's row in the catalog. It is another one once the column has another
-- default or identity.
select
    outbox.relation::bigint as relation,
    outbox.sequence::bigint as sequence,
    pg_relation_filenode(outbox.sequence)::bigint as file,
    (
        select pg_attribute.xmin::text
        from pg_attribute
        where pg_attribute.attrelid = outbox.relation and pg_attribute.attname = 'position'
    ) as defined
from (
    select
        'pillarbox.outbox'::regclass::oid as relation,
        coalesce(
            (
                select drawn.refobjid
                from pg_attribute
                join pg_attrdef on pg_attrdef.adrelid = pg_attribute.attrelid and pg_attrdef.adnum = pg_attribute.attnum
                join pg_depend as drawn
                    on drawn.classid = 'pg_attrdef'::regclass
                    and drawn.objid = pg_attrdef.oid
                    and drawn.refclassid = 'pg_class'::regclass
                join pg_class on pg_class.oid = drawn.refobjid and pg_class.relkind = 'S'
                where pg_attribute.attrelid = 'pillarbox.outbox'::regclass and pg_attribute.attname = 'position'
                limit 1
            ),
            pg_get_serial_sequence('pillarbox.outbox', 'position')::regclass::oid
        ) as sequence
    offset 0
) as outbox
