-- The inbox forgets an event as soon as it is claimed again, so every delivery is the first one.
create function forget_handled() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
    delete from pillarbox.inbox where consumer = new.consumer and event_id = new.event_id;
    return new;
end $$;

create trigger forget_handled before insert on pillarbox.inbox
for each row execute function forget_handled();
