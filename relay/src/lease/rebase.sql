-- Rebases the outbox onto a new cluster's transaction ids.
--
--   $1 S          $2 P, the largest position shipped
--   $3, $4 the window under way, or nulls: S' and the position up to which it has been shipped
--
-- After a restore into a new cluster, ids start again, and the `txid` of every restored row belongs to the
-- old one. Which rows had been shipped is known from the old ids, as always: those that S could see, and
-- those of the window under way up to its position. A row above these positions is new, or had not been
-- shipped, whatever its id looks like in the light of the old snapshot.
--
-- What had been shipped gets an id that finished long ago (3, the first ordinary one); the rest gets this
-- transaction's own, which the new cursor's snapshot, taken before this transaction had an id, cannot see.
update pillarbox.outbox
set
    txid = case
        when
            (position <= $2 and pg_visible_in_snapshot(txid, $1::text::pg_snapshot))
            or (
                $3::text is not null
                and position <= $4
                and pg_visible_in_snapshot(txid, $3::text::pg_snapshot)
            )
            then '3'::xid8
        else pg_current_xact_id()
    end
