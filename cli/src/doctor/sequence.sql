-- The next position, the highest position known to have been used, and whether the sequence and the order of the
-- columns are as the relay's cursor needs them: $1 schema.
select
    (
        select seqcache = 1 and seqincrement > 0 and not seqcycle
        from pg_sequence
        join pg_class on pg_class.oid = seqrelid
        join pg_namespace on pg_namespace.oid = relnamespace
        where relname = 'outbox_position_seq' and nspname = $1
    )
    and (
        select max(attnum) filter (where attname = 'txid') < max(attnum) filter (where attname = 'position')
        from pg_attribute
        where attrelid = 'pillarbox.outbox'::regclass
    ) as shape,
    (select last_value + is_called::integer from pillarbox.outbox_position_seq) as next,
    greatest(
        (select max(position) from pillarbox.outbox),
        (select max(position) from pillarbox.outbox_dead_letter),
        (select max((cursor ->> 'high'::text)::bigint) from pillarbox.relay),
        0
    ) as used
