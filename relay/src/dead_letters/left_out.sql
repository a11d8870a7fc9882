-- Which of these letters are parked still, although the relay has just written that they are not, and what on their
-- table may have left the update out: $1 relay name, $2 epoch, $3 letters.
--
-- The update itself cannot tell. A trigger may leave a row out or set its state back, and a rule may do nothing at all;
-- neither is an error, and a rule also hides how many rows there were.
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
