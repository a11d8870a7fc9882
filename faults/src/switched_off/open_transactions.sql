-- The cursor is saved as if every transaction that has an id by now had finished. A relay that takes over later believes
-- that all rows up to the highest position have been shipped.
create function forget_open_transactions() returns trigger language plpgsql set search_path = pg_catalog as $$
declare
    next_id text := pg_snapshot_xmax(pg_current_snapshot())::text;
begin
    -- Within a window, the cursor has the snapshot of the previous window.
    if new.cursor <> old.cursor and new.cursor #> '{window,snapshot}' is null then
        new.cursor := new.cursor || jsonb_build_object(
            'snapshot', next_id || ':' || next_id || ':',
            'floor', new.cursor -> 'high',
            'in_flight', '{}'::jsonb,
            'marks', '[]'::jsonb
        );
    end if;
    return new;
end $$;

create trigger forget_open_transactions before update on pillarbox.relay
for each row execute function forget_open_transactions();
