-- The writers' own tables, and a log of everything that was written to the relay's row. All are in the database of
-- the outbox.

-- A row for each key. Drawing a number of the key locks the row.
create table counter (key text primary key, next bigint not null default 0);

-- What was scheduled, with the time at which it is due, and what each cancel answered. Writers write both in the same
-- transaction, so what is here was committed.
create table scheduled_ever (event_id uuid primary key, due_at timestamptz not null);
create table cancel (event_id uuid not null, cancelled boolean not null);

-- Every new epoch (`took`) and every movement of the cursor, with the connection over which it came. A leader takes
-- the lease and writes the cursor over the same connection. So if a movement came over another connection than the one
-- that took the newest epoch, it came from a relay that no longer leads.
create table cursor_write (
    number  bigint      generated always as identity primary key,
    at      timestamptz not null default clock_timestamp(),
    backend integer     not null default pg_backend_pid(),
    took    boolean     not null,
    epoch   bigint      not null,
    holder  text        null,
    high    bigint      not null,
    -- Whether the cursor moved back.
    back    boolean     not null
);

-- The relay resolves no name through `public`, so the function names the schema of its table.
create function note_cursor_write() returns trigger language plpgsql set search_path = public as $$
declare
    back boolean;
    taken boolean;
begin
    if tg_op = 'INSERT' then
        insert into cursor_write (took, epoch, holder, high, back)
        values (true, new.epoch, new.holder, (new.cursor ->> 'high')::bigint, false);
        return null;
    end if;
    -- By the holder, too: a test keeps the epoch as it is.
    taken := new.epoch <> old.epoch or (new.holder is not null and new.holder is distinct from old.holder);
    if taken or new.cursor <> old.cursor then
        -- `high` does not change within a window, which may hold the whole outbox after a loss. A window is read in the
        -- order of positions, and ends only when everything in it was read, which moves the snapshot.
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
        values (taken, new.epoch, new.holder, (new.cursor ->> 'high')::bigint, back);
    end if;
    return null;
end $$;

create trigger note_cursor_write after insert or update on pillarbox.relay
for each row execute function note_cursor_write();

-- A relay that goes back deletes the checkpoints after the place to which it goes back. If the cursor was already at
-- that place, as at the start, before the relay had saved any progress, only this shows that the relay went back.
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
