select longest, pg_catalog.set_config('statement_timeout', longest::pg_catalog.text, true)
from (
    select
        case
            when pg_catalog.current_setting('statement_timeout') operator(pg_catalog.=) '0' then $1::bigint
            else least(
                $1::bigint,
                (
                    extract(epoch from pg_catalog.current_setting('statement_timeout')::interval)
                    operator(pg_catalog.*) 1000::numeric
                )::bigint
            )
        end as longest
) as found
