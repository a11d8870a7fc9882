//! Begins and ends an event's transaction: records the event as handled, and commits.

use std::collections::{HashMap, HashSet};

use pillarbox_store::limit::{limited, within};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use crate::error::InboxError;
use crate::store::begin_and_claim::Event;
use crate::store::begun::{BEGIN_TIMEOUT, Begun, unexpected};
use crate::store::lent::LONGEST;
use crate::store::statements::Store;
use crate::tx::Tx;

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The event was handled before, as its row shows.
    Duplicate,
    /// It is claimed. The number of failed attempts; `None`: nothing is known of it.
    Claimed(Option<u32>),
    /// It is claimed, but earlier events of its key wait among the dead letters, so it must be parked behind them.
    Behind,
}

impl Store {
    /// Opens a transaction.
    pub(crate) async fn begin(&self) -> Result<Begun, sqlx::Error> {
        let pool = self.pool().await?;
        let tx = limited(BEGIN_TIMEOUT, Tx::begin(pool, self.statements.begin.clone())).await?;
        Ok(Begun::new(tx))
    }

    /// Fails if the pool's sessions are shared with other clients, or if rows may be hidden from them. Checks until
    /// both are excluded.
    pub(crate) async fn has_own_sessions(&self) -> Result<(), sqlx::Error> {
        self.pool_check.are_own(&self.pool).await
    }

    /// Opens a transaction on a kept connection, and records the event in it, in [one round
    /// trip](super::begin_and_claim). `parked`: the event was taken from the dead letters, and is released first.
    /// `None`: there is no such connection, or it failed. There is no claim if the event was not released. If the
    /// connection is silent, this is an error, because another transaction may have the event.
    pub(crate) async fn begin_and_claim(
        &self,
        event_id: &str,
        key: Option<&str>,
        parked: bool,
    ) -> Result<Option<(Begun, Option<Claim>)>, InboxError> {
        let (Some(kept), Some(begin_and_claim)) = (&self.kept, &self.begin_and_claim) else {
            return Ok(None);
        };
        loop {
            let Some(mut begun) = kept.take() else { return Ok(None) };
            begun.mark = None;
            let event = Event {
                id: event_id,
                key: key.filter(|_| self.keeps_keys),
                stream: self.stream_or_none(),
                release: parked.then_some(self.strict),
            };
            let text = begin_and_claim.text(begun.limit, event);
            let claim = sqlx::raw_sql(AssertSqlSafe(text)).fetch_all(&mut *begun.tx);
            let Ok(claimed) = within(LONGEST, "the database", claim).await else {
                begun.abandon();
                return Err(InboxError::Slow { doing: "record the event" });
            };
            let rows = match claimed {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::debug!(%error, "a kept connection is of no use");
                    begin_and_claim.failed(&error);
                    continue;
                }
            };
            let mut rows = rows.iter();
            if begun.limit.is_none() {
                let found = rows.next().and_then(|row| row.try_get::<i64, _>(0).ok());
                let Some(limit) = found else { return Ok(None) };
                begun.limit = Some(limit.unsigned_abs());
            }
            if parked {
                let released = rows.next().and_then(|row| row.try_get::<bool, _>(0).ok());
                match released {
                    Some(true) => {}
                    Some(false) => return Ok(Some((begun, None))),
                    None => return Ok(None),
                }
            }
            let claimed = self.claimed(&mut begun, event_id, rows.next());
            return match within(LONGEST, "the database", claimed).await {
                Ok(claimed) => Ok(claimed.ok().map(|claim| (begun, Some(claim)))),
                Err(_) => {
                    begun.abandon();
                    Err(InboxError::Slow { doing: "record the event" })
                }
            };
        }
    }

    /// [Commits](Begun::commit), and keeps the connection if this store keeps connections. `recovered`: the event that
    /// failed before; what is known of its failed attempts is removed in the same transaction.
    pub(crate) async fn commit(
        &self,
        begun: Begun,
        recovered: Option<&str>,
    ) -> Result<(), InboxError> {
        let last = recovered.map(|event_id| self.forget_text(event_id)).unwrap_or_default();
        match self.kept.as_ref().filter(|kept| kept.wants(&self.pool, begun.taken_at)) {
            Some(kept) => {
                if let Some(ended) = begun.commit(&last, true).await? {
                    kept.keep(ended);
                }
            }
            None => drop(begun.commit(&last, false).await?),
        }
        Ok(())
    }

    /// Records the event as handled. Waits for another transaction that is handling it. With a key, it also returns
    /// whether earlier events of that key wait among the dead letters.
    pub(crate) async fn claim(
        &self,
        begun: &mut Begun,
        event_id: &str,
        key: Option<&str>,
    ) -> Result<Claim, sqlx::Error> {
        let row = self
            .query(&self.statements.claim)
            .bind(event_id)
            .bind(key.filter(|_| self.keeps_keys))
            .bind(self.stream_or_none())
            .fetch_optional(&mut *begun.tx)
            .await?;
        self.claimed(begun, event_id, row.as_ref()).await
    }

    /// Reads the answer to a claim. If there is no row, another statement asks whether the event was recorded before.
    async fn claimed(
        &self,
        begun: &mut Begun,
        event_id: &str,
        row: Option<&PgRow>,
    ) -> Result<Claim, sqlx::Error> {
        let Some(row) = row else {
            return match self.are_recorded(begun, &[event_id]).await? {
                true => Ok(Claim::Duplicate),
                false => Err(unexpected("neither that the event is recorded now, nor that it was")),
            };
        };
        let (id, failed) = self.read_claim(row)?;
        if id != event_id {
            return Err(unexpected("that another event is recorded"));
        }
        let (transaction, backend): (&str, i32) = (row.try_get(3)?, row.try_get(4)?);
        begun.mark(&self.sessions, transaction, backend, None).await?;
        Ok(if row.try_get(5)? { Claim::Behind } else { Claim::Claimed(failed) })
    }

    /// Reads the event and what is known of failed attempts from a row of a claim.
    fn read_claim(&self, row: &PgRow) -> Result<(String, Option<u32>), sqlx::Error> {
        if row.try_get::<&str, _>(0)? != &*self.consumer {
            return Err(unexpected("that an event of another consumer is recorded"));
        }
        let failed: Option<i32> = row.try_get(2)?;
        Ok((row.try_get(1)?, failed.map(i32::unsigned_abs)))
    }

    /// Whether all of these events are recorded as handled.
    pub(super) async fn are_recorded(
        &self,
        begun: &mut Begun,
        event_ids: &[&str],
    ) -> Result<bool, sqlx::Error> {
        if event_ids.is_empty() {
            return Ok(true);
        }
        let rows =
            self.query(&self.statements.recorded).bind(event_ids).fetch_all(&mut *begun.tx).await?;
        let recorded = rows.iter().map(|row| match row.try_get::<&str, _>(0)? == &*self.consumer {
            true => row.try_get(1),
            false => Err(unexpected("that an event of another consumer is recorded")),
        });
        let recorded = recorded.collect::<Result<HashSet<&str>, _>>()?;
        Ok(event_ids.iter().all(|id| recorded.contains(id)))
    }

    /// Records many events as handled. Returns the recorded ones, with what is known of failed attempts. The others
    /// were recorded before. Waits as [`claim`](Self::claim) does.
    pub(crate) async fn claim_all(
        &self,
        begun: &mut Begun,
        event_ids: &[&str],
    ) -> Result<HashMap<String, Option<u32>>, sqlx::Error> {
        let rows = self
            .query(&self.statements.claim_all)
            .bind(event_ids)
            .fetch_all(&mut *begun.tx)
            .await?;
        let claimed: HashMap<_, _> =
            rows.iter().map(|row| self.read_claim(row)).collect::<Result<_, _>>()?;
        if let Some(row) = rows.first() {
            let (transaction, backend): (&str, i32) = (row.try_get(3)?, row.try_get(4)?);
            begun.mark(&self.sessions, transaction, backend, None).await?;
        }
        let others: Vec<&str> =
            event_ids.iter().copied().filter(|id| !claimed.contains_key(*id)).collect();
        match self.are_recorded(begun, &others).await? {
            true => Ok(claimed),
            false => Err(unexpected("neither that an event is recorded now, nor that it was")),
        }
    }
}
