-- The next position, the highest position known to have been used, and whether the sequence and the order of the
-- columns are as the relay's cursor needs them. `{sequence}` is the name of the sequence that gives out the positions.
select
    (select seqcache = 1 and seqincrement > 0 and not seqcycle from pg_sequence where seqrelid = '{sequence}'::regclass)
    and (
        select max(attnum) filter (where attname = 'txid') < max(attnum) filter (where attname = 'position')
        from pg_attribute
        where attrelid = 'pillarbox.outbox'::regclass
    ) as shape,
    (select last_value + is_called::integer from {sequence}) as next,
    greatest(
        (select max(position) from pillarbox.outbox),
        (select max(position) from pillarbox.outbox_dead_letter),
        -- Not of another table, which was the outbox before.
        (
            select max((cursor ->> 'high'::text)::bigint)
            from pillarbox.relay
            where
                coalesce((cursor #>> '{table,relation}'::text[])::bigint = 'pillarbox.outbox'::regclass::oid::bigint, true)
        ),
        0
    ) as used
