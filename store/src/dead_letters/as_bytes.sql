-- The same letters with their texts as the bytes that are stored: nothing is converted, so nothing can fail to be.
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
    age
from (
{letters}
) as letters
