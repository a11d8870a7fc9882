-- What every connection of the relay and of the commands sets before its first statement.
--
-- First, names are looked up in pg_catalog alone: nobody else can put an operator, a function or a type there. The
-- temporary schema, which is searched first unless it is named, comes last. All tables are written with their schema.
set search_path = pg_catalog, pg_temp;

-- The rest is inherited from the role, the database or the server, where somebody may have changed it for others.
-- Only what differs is set, so that a setting that this version of Postgres does not have, or that takes a superuser,
-- is no trouble where it is as it must be.
--
--   timeouts                       another client's limits; the relay has its own, on its side. Idle in a transaction,
--                                  as a relay that was paused may be, it must not hold locks for long
--   row_security                   off: a policy that hides rows is an error, instead of events that are never shipped
--   default_transaction_*          the relay writes, and each statement sees what is committed by then
--   synchronous_commit             what the relay has written must survive; `remote_apply` says more than `on`
--   session_replication_role       with `replica`, triggers do not run
--   DateStyle and the like         how values are written as text, and read
--   jit                            costs more than it gains in statements as short as these
--   enable_*                       a planner that may not use an index reads the whole table
--   tcp_*, client_connection_*     the server gives up on a client that is gone, and lets go of what it held
select set_config(wanted.name, wanted.setting, false)
from (
    values
        ('statement_timeout', 'statement timeout'),
        ('lock_timeout', '0'),
        ('idle_in_transaction_session_timeout', '60000'),
        ('idle_session_timeout', '0'),
        ('transaction_timeout', '0'),
        ('row_security', 'off'),
        ('default_transaction_isolation', 'read committed'),
        ('default_transaction_read_only', 'off'),
        ('default_transaction_deferrable', 'off'),
        ('session_replication_role', 'origin'),
        ('client_encoding', 'UTF8'),
        ('DateStyle', 'ISO, MDY'),
        ('IntervalStyle', 'postgres'),
        ('TimeZone', 'UTC'),
        ('bytea_output', 'hex'),
        ('extra_float_digits', '2'),
        ('standard_conforming_strings', 'on'),
        ('backslash_quote', 'safe_encoding'),
        ('array_nulls', 'on'),
        ('transform_null_equals', 'off'),
        ('exit_on_error', 'off'),
        ('plan_cache_mode', 'auto'),
        ('jit', 'off'),
        ('tcp_keepalives_idle', '10'),
        ('tcp_keepalives_interval', '5'),
        ('tcp_keepalives_count', '3'),
        ('tcp_user_timeout', '30000'),
        ('client_connection_check_interval', '5000')
) as wanted (name, setting)
join pg_settings as found on found.name = wanted.name
where
    found.setting <> wanted.setting
    -- Elsewhere it cannot be set.
    and (wanted.name <> 'client_connection_check_interval' or version() like '%linux%')
union all
select set_config(name, boot_val, false)
from pg_settings
where name like 'enable!_%' escape '!' and setting <> boot_val
union all
select set_config(name, 'on', false)
from pg_settings
where name = 'synchronous_commit' and setting not in ('on', 'remote_apply');
