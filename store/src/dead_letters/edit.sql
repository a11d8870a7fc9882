-- Changes the content of a dead letter: $1 its number, $2 headers and $3 payload, or null to keep them, $4 when it was
-- edited last, as the operator saw it, or null.
--
-- The content with which the event was published is kept once, by the first edit.
update pillarbox.{table}
set
    original_headers = case when edited_at is null then headers else original_headers end,
    original_payload = case when edited_at is null then payload else original_payload end,
    headers = coalesce($2::text::jsonb, headers),
    payload = coalesce($3::bytea, payload),
    edited_at = clock_timestamp()
where {number} = $1 and state = 'dead' and edited_at::text is not distinct from $4::text
