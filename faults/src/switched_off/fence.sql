-- A takeover leaves the epoch as it is, so the writes of the former leader still name the right one.
create function keep_epoch() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
    new.epoch := old.epoch;
    return new;
end $$;

create trigger keep_epoch before update on pillarbox.relay
for each row execute function keep_epoch();
