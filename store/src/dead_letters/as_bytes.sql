-- The same letters, with texts as the bytes that the database stores. Nothing is converted, so no conversion can fail.
select
    letter,
    position,
    convert_to(owner, getdatabaseencoding()) as owner,
    event_id,
    convert_to(event_type, getdatabaseencoding()) as event_type,
    convert_to(topic, getdatabaseencoding()) as topic,
    convert_to(key, getdatabaseencoding()) as key,
    convert_to(headers, getdatabaseencoding()) as headers,
    payload,
    payload_bytes,
    state,
    convert_to(reason, getdatabaseencoding()) as reason,
    convert_to(error, getdatabaseencoding()) as error,
    attempts,
    whole,
    age,
    edited_at
from (
{letters}
) as letters
