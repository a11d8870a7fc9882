-- The writers' own table, and a log of everything that was written to the relay's row. It stands in the database
-- of the outbox.

-- A row for each key. Whoever draws a number of it locks it.
create table counter (key text primary key, next bigint not null default 0);

-- Every new epoch (`took`), and every movement of the cursor, with the connection that it came over. A leader
-- takes the lease and writes the cursor over one connection, so a movement over another than the one that took
-- the newest epoch is that of a relay which no longer leads.
create table cursor_write (
    number  bigint      generated always as identity primary key,
    at      timestamptz not null default clock_timestamp(),
    backend integer     not null default pg_backend_pid(),
    took    boolean     not null,
    epoch   bigint      not null,
    holder  text        null,
    high    bigint      not null,
    -- The cursor was further before.
    back    boolean     not null
);

-- The relay resolves no name through `public`, so the function says where its table is.
create function note_cursor_write() returns trigger language plpgsql set search_path = public as $$
declare
    back boolean;
begin
    if tg_op = 'INSERT' then
        insert into cursor_write (took, epoch, holder, high, back)
        values (true, new.epoch, new.holder, (new.cursor ->> 'high')::bigint, false);
    elsif new.epoch <> old.epoch or new.cursor <> old.cursor then
        -- `high` stands still within a window, which may hold the whole outbox after a loss. A window begun is left by
        -- its end alone, which moves the snapshot, and read in the order of positions.
        back := (new.cursor ->> 'high')::bigint < (old.cursor ->> 'high')::bigint
            or coalesce(
                new.cursor ->> 'snapshot' = old.cursor ->> 'snapshot'
                and old.cursor #>> '{window,snapshot}' is not null
                and (
                    new.cursor #>> '{window,snapshot}' is distinct from old.cursor #>> '{window,snapshot}'
                    or (new.cursor #>> '{window,position}')::bigint
                        < (old.cursor #>> '{window,position}')::bigint
                ),
                false
            );
        insert into cursor_write (took, epoch, holder, high, back)
        values (new.epoch <> old.epoch, new.epoch, new.holder, (new.cursor ->> 'high')::bigint, back);
    end if;
    return null;
end $$;

create trigger note_cursor_write after insert or update on pillarbox.relay
for each row execute function note_cursor_write();

-- A relay that goes back forgets the checkpoints behind the place that it goes back to. Nothing else shows it where the
-- cursor stood at that very place, as at the start, before anything that was shipped had been written down.
create table checkpoint_forgotten (at timestamptz not null default clock_timestamp());

create function note_checkpoint_forgotten() returns trigger language plpgsql set search_path = public as $$
begin
    if exists (select from gone) then
        insert into checkpoint_forgotten default values;
    end if;
    return null;
end $$;

create trigger note_checkpoint_forgotten after delete on pillarbox.relay_checkpoint
referencing old table as gone
for each statement execute function note_checkpoint_forgotten();
