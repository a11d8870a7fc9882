-- What every connection of the relay and of the commands sets before its first statement.
--
-- First, names are looked up only in pg_catalog, where nobody else can put an operator, a function or a type. The
-- temporary schema comes last; if it were not named, it would be searched first. All tables are written with their
-- schema.
set search_path = pg_catalog, pg_temp;

-- The other settings are inherited from the role, the database or the server, where somebody may have changed them.
-- Only settings that differ are set. So a setting that this version of Postgres does not have, or that only a superuser
-- may set, causes no error if its value is already right.
--
--   timeouts                       meant for other clients; the relay has its own limits. A transaction that stays
--                                  idle, because the relay was paused, must not hold locks for long
--   row_security                   off: a policy that hides rows becomes an error; otherwise events would not be
--   shipped
--   default_transaction_*          the relay writes, and each statement must see what is committed when it starts
--   synchronous_commit             what the relay has written must survive a crash; `remote_apply` is stricter than
--   `on`
--   session_replication_role       with `replica`, triggers would not run
--   DateStyle and the like         how values are converted to text and back
--   jit                            costs more than it gains for statements as short as these
--   enable_*                       without an index, the planner would read the whole table
--   tcp_*, client_connection_*     the server notices that a client is gone, and releases its locks
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
    -- On other systems it cannot be set.
    and (wanted.name <> 'client_connection_check_interval' or version() like '%linux%')
union all
select set_config(name, boot_val, false)
from pg_settings
where name like 'enable!_%' escape '!' and setting <> boot_val
union all
select set_config(name, 'on', false)
from pg_settings
where name = 'synchronous_commit' and setting not in ('on', 'remote_apply');
