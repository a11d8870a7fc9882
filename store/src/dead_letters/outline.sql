-- The same letters with what tells their groups apart, and nothing else: neither payload nor headers are read. Texts
-- come as the bytes that are stored, so nothing can fail to be converted. Of an error, one character more than a
-- fingerprint looks at comes, which shows that there was more.
select
    letter,
    convert_to(owner, getdatabaseencoding()) as owner,
    convert_to(event_type, getdatabaseencoding()) as event_type,
    convert_to(reason, getdatabaseencoding()) as reason,
    convert_to(left(error, {error_chars}), getdatabaseencoding()) as error,
    state,
    age
from (
{letters}
) as letters
