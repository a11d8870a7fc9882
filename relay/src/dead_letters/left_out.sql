-- Which of these letters are still parked, although the relay has just updated them, and which triggers and rules on
-- the table may be the cause: $1 relay name, $2 epoch, $3 letters.
--
-- The update itself cannot tell. A trigger may leave a row out or reset its state, and a rule may do nothing at all.
-- Neither is an error, and a rule also hides the number of rows.
select
    (select count(*) from pillarbox.relay where name = $1 and epoch = $2) as held,
    array(
        select letter
        from pillarbox.outbox_dead_letter
        where relay = $1 and letter = any ($3) and state = 'parked'
    ) as parked,
    array(
        select suspect.name
        from (
            select 'trigger '::text || quote_ident(tgname::text) as name
            from pg_trigger
            where tgrelid = 'pillarbox.outbox_dead_letter'::regclass and not tgisinternal and tgenabled <> 'D'
            union all
            select 'rule '::text || quote_ident(rulename::text)
            from pg_rewrite
            where ev_class = 'pillarbox.outbox_dead_letter'::regclass and ev_enabled <> 'D'
        ) as suspect
        order by suspect.name
        limit 10
    ) as suspects
