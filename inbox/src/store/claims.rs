//! The beginning and the end of an event's transaction: it is recorded as handled, and committed.

use std::collections::HashMap;

use pillarbox_store::limit::{limited, within};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use crate::error::InboxError;
use crate::store::begin_and_claim::Event;
use crate::store::begun::{BEGIN_TIMEOUT, Begun, unexpected};
use crate::store::lent::LONGEST;
use crate::store::statements::Store;

/// What a claim found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The event is handled already: its row is there.
    Duplicate,
    /// It is claimed. So many attempts failed; `None` if nothing is known of it.
    Claimed(Option<u32>),
    /// It is claimed, and earlier events of its key wait among the dead letters: it must be parked behind them.
    Behind,
}

impl Store {
    /// Opens a transaction.
    pub(crate) async fn begin(&self) -> Result<Begun, sqlx::Error> {
        let pool = self.pool().await?;
        let tx = limited(BEGIN_TIMEOUT, pool.begin_with(self.statements.begin.clone())).await?;
        Ok(Begun::new(tx, pool.connect_options()))
    }

    /// Fails if the pool's sessions are shared with others, or rows may be hidden from them. Asks until all is well.
    pub(crate) async fn has_own_sessions(&self) -> Result<(), sqlx::Error> {
        self.pool_check.are_own(&self.pool).await
    }

    /// Opens a transaction on a connection that was kept, and records the event in it, in [one trip](super::begin_and_claim).
    /// `parked`: it was taken from the dead letters, and is released first. `None` if there is no such connection, or it
    /// is not well; no claim if the event was not released. An error if it is silent: another transaction may have the
    /// event.
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

    /// [Commits](Begun::commit), and keeps the connection if that is wanted. `recovered`: the event of which failed
    /// attempts are known, which are forgotten with it.
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

    /// Records the event as handled. Waits for another transaction that is handling it. Given a key, it says whether
    /// earlier events of that key wait among the dead letters.
    pub(crate) async fn claim(
        &self,
        begun: &mut Begun,
        event_id: &str,
        key: Option<&str>,
    ) -> Result<Claim, sqlx::Error> {
        let row = sqlx::query(self.statements.claim.clone())
            .bind(&*self.consumer)
            .bind(event_id)
            .bind(key.filter(|_| self.keeps_keys))
            .bind(self.stream_or_none())
            .fetch_optional(&mut *begun.tx)
            .await?;
        self.claimed(begun, event_id, row.as_ref()).await
    }

    /// What the answer to a claim says. No row is no answer: another look tells.
    async fn claimed(
        &self,
        begun: &mut Begun,
        event_id: &str,
        row: Option<&PgRow>,
    ) -> Result<Claim, sqlx::Error> {
        let Some(row) = row else {
            let recorded = self.recorded(begun, &[event_id]).await?;
            return if recorded.iter().any(|recorded| recorded == event_id) {
                Ok(Claim::Duplicate)
            } else {
                Err(unexpected("neither that the event is recorded now, nor that it was"))
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

    /// The event that a row of a claim is about, and what is known of failed attempts.
    fn read_claim(&self, row: &PgRow) -> Result<(String, Option<u32>), sqlx::Error> {
        if row.try_get::<&str, _>(0)? != &*self.consumer {
            return Err(unexpected("that an event of another consumer is recorded"));
        }
        let failed: Option<i32> = row.try_get(2)?;
        Ok((row.try_get(1)?, failed.map(i32::unsigned_abs)))
    }

    /// Which of these events are recorded as handled.
    pub(super) async fn recorded(
        &self,
        begun: &mut Begun,
        event_ids: &[&str],
    ) -> Result<Vec<String>, sqlx::Error> {
        let recorded = sqlx::query(self.statements.recorded.clone());
        let rows = recorded.bind(&*self.consumer).bind(event_ids).fetch_all(&mut *begun.tx).await?;
        rows.iter()
            .map(|row| match row.try_get::<&str, _>(0)? == &*self.consumer {
                true => row.try_get(1),
                false => Err(unexpected("that an event of another consumer is recorded")),
            })
            .collect()
    }

    /// Records many events as handled. Those that are recorded, with what is known of failed attempts; the
    /// others are duplicates: their rows are there. Waits as [`claim`](Self::claim) does.
    pub(crate) async fn claim_all(
        &self,
        begun: &mut Begun,
        event_ids: &[&str],
    ) -> Result<HashMap<String, Option<u32>>, sqlx::Error> {
        let claim = sqlx::query(self.statements.claim_all.clone());
        let rows = claim.bind(&*self.consumer).bind(event_ids).fetch_all(&mut *begun.tx).await?;
        let claimed: HashMap<_, _> =
            rows.iter().map(|row| self.read_claim(row)).collect::<Result<_, _>>()?;
        if let Some(row) = rows.first() {
            let (transaction, backend): (&str, i32) = (row.try_get(3)?, row.try_get(4)?);
            begun.mark(&self.sessions, transaction, backend, None).await?;
        }
        let others: Vec<&str> =
            event_ids.iter().copied().filter(|id| !claimed.contains_key(*id)).collect();
        if !others.is_empty() {
            let recorded = self.recorded(begun, &others).await?;
            if others.iter().any(|id| !recorded.iter().any(|recorded| recorded == id)) {
                return Err(unexpected("neither that an event is recorded now, nor that it was"));
            }
        }
        Ok(claimed)
    }
}
