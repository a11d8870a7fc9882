-- The trail: what went through the streams, without the payloads. It is optional. With it, `pillarbox trace` follows an
-- order through all services.
--
-- Plain SQL: apply it with `pillarbox migrate trail`, with psql, or with any migration tool. To use another schema,
-- replace the word `pillarbox` throughout, as `--schema` does.

-- `create schema if not exists` would need the right to create schemas even if the schema exists.
do $$
begin
    if to_regnamespace('pillarbox') is null then
        create schema pillarbox;
    end if;
end
$$;

-- How far the trail has read each life of a stream. A stream that is deleted and created again has another life: `life`
-- is when it was created. `sequence` and `stored_at` are those of the last message that was read, written in the
-- transaction that writes the rows. `last_sequence` is how far the stream was at `looked_at`. `problem` is why it is not
-- read at the moment.
create table if not exists pillarbox.trail_stream (
    stream        text        not null check (stream <> ''),
    life          timestamptz not null,
    sequence      bigint      not null default 0 check (sequence >= 0),
    stored_at     timestamptz null,
    last_sequence bigint      not null default 0,
    looked_at     timestamptz not null default clock_timestamp(),
    read_at       timestamptz null,
    problem       text        null,
    primary key (stream, life)
);

-- One row for each message of a stream. `event_id` to `event_time` are its CloudEvents attributes; `event_id` is null if
-- the message is no event, and `problem` says why. `identity` is the inbox's name for the event, if that is another text
-- than its id. `topic` is the subject without the partition. `size` is that of the payload in bytes. `stored_at` is when
-- the stream stored the message, in microseconds. Nothing of the payload and no application header is kept.
--
-- The time is part of the key because the rows are partitioned by it. It also tells two messages apart that have the
-- same sequence because the stream was restored from a backup.
create table if not exists pillarbox.trail (
    stored_at      timestamptz not null,
    stream         text        not null,
    stream_life    timestamptz not null,
    sequence       bigint      not null,
    event_id       text        null,
    identity       text        null,
    source         text        null,
    event_type     text        null,
    topic          text        not null,
    key            text        null,
    correlation_id text        null,
    causation_id   text        null,
    event_time     timestamptz null,
    size           bigint      not null,
    problem        text        null,
    primary key (stream, stream_life, sequence, stored_at)
) partition by range (stored_at);

create index if not exists trail_event on pillarbox.trail (event_id) where event_id is not null;
create index if not exists trail_key on pillarbox.trail (key, stored_at) where key is not null;
create index if not exists trail_correlation on pillarbox.trail (correlation_id) where correlation_id is not null;
create index if not exists trail_causation on pillarbox.trail (causation_id) where causation_id is not null;
-- For the events of a type, the newest first: whether a consumer usually handles it.
create index if not exists trail_type on pillarbox.trail (event_type, stored_at) where event_type is not null;

-- Makes the partitions of these days (UTC). The role of the trail may run this, so that it need not own the tables. A day
-- that is more than two days ahead or ten years back is refused.
create or replace function pillarbox.trail_days(days date[]) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    today constant date := (clock_timestamp() at time zone 'UTC')::date;
    day date;
begin
    if cardinality(days) > 4000 then
        raise exception 'more than 4000 days';
    end if;
    foreach day in array days loop
        if day is null or day < today - 3660 or day > today + 2 then
            raise exception 'no day of the trail: %', day;
        end if;
        execute format(
            'create table if not exists pillarbox.trail_%s partition of pillarbox.trail for values from (%L) to (%L)',
            to_char(day, 'YYYYMMDD'),
            to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00',
            to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00'
        );
    end loop;
end
$$;
revoke all on function pillarbox.trail_days(date[]) from public;

-- Drops the partitions whose rows are all older than `keep_seconds`, and then the oldest ones until the trail takes at
-- most `most_bytes` with its indexes. Returns the names of those that were dropped. It never drops anything but a
-- partition of the trail.
create or replace function pillarbox.trail_forget(keep_seconds bigint, most_bytes bigint) returns setof text
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    oldest_kept constant date :=
        ((clock_timestamp() - make_interval(secs => keep_seconds)) at time zone 'UTC')::date;
    part record;
    left_bytes bigint := 0;
begin
    if keep_seconds < 3600 or most_bytes < 1048576 then
        raise exception 'the trail keeps at least an hour and a megabyte';
    end if;
    for part in
        select child.oid, child.relname::text as name, pg_total_relation_size(child.oid) as bytes
        from pg_inherits
        join pg_class as child on child.oid = inhrelid
        where inhparent = 'pillarbox.trail'::regclass and child.relname ~ '^trail_[0-9]{8}$'
        order by child.relname desc
    loop
        left_bytes := left_bytes + part.bytes;
        if to_date(right(part.name, 8), 'YYYYMMDD') < oldest_kept or left_bytes > most_bytes then
            execute format('drop table pillarbox.%I', part.name);
            return next part.name;
        end if;
    end loop;
    delete from pillarbox.trail_stream
    where looked_at < clock_timestamp() - make_interval(secs => keep_seconds);
end
$$;
revoke all on function pillarbox.trail_forget(bigint, bigint) from public;
