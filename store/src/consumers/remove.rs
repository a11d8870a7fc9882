//! Removing what the database knows of a consumer that is gone.

use super::{Consumers, ControlError, running};
use crate::actions::{Deed, Operator, record};

/// How many rows of the inbox one transaction removes.
const BATCH: i64 = 10_000;

/// The tables beside the inbox and the dead letters that have rows of a consumer.
const TABLES: [&str; 7] = [
    "inbox_failure",
    "inbox_forgotten",
    "inbox_own_death",
    "inbox_process",
    "inbox_member",
    "inbox_pause",
    "inbox_rate",
];

impl Consumers {
    /// Removes all that the database knows of a consumer that is gone: what it has handled, its failures, its dead
    /// letters, its processes. Returns how many handled events it had recorded.
    ///
    /// If a consumer of this name starts again, it does not know what it has handled before. Its durable consumer on
    /// the broker is not touched; remove it as well. The role must be allowed to remove rows, as the consumer's role
    /// and the tables' owner are, and the operator's is not.
    ///
    /// The handled events are removed first, in parts, each recorded in a transaction of its own. If that is
    /// interrupted, the call can be made again.
    ///
    /// # Errors
    /// [`ControlError`]: unknown, running, or with unresolved dead letters unless `with_letters`.
    pub async fn remove(
        &self,
        consumer: &str,
        with_letters: bool,
        operator: &Operator,
    ) -> Result<u64, ControlError> {
        self.known(consumer).await?;
        let mut connection = self.pool.acquire().await?;
        let processes = running(&mut connection, &self.schema, consumer).await?;
        if processes > 0 {
            return Err(ControlError::Running { consumer: consumer.to_owned(), processes });
        }
        let unresolved = self.schema.statement(
            "select count(*) from pillarbox.inbox_dead_letter where consumer = $1 and state in ('dead', 'parked')",
        );
        let letters: i64 =
            sqlx::query_scalar(unresolved).bind(consumer).fetch_one(&mut *connection).await?;
        if letters > 0 && !with_letters {
            return Err(ControlError::Unresolved { consumer: consumer.to_owned(), letters });
        }
        let handled = self.schema.statement(
            "delete from pillarbox.inbox where consumer = $1 and event_id = any ( \
             array(select event_id from pillarbox.inbox where consumer = $1 limit $2))",
        );
        drop(connection);
        let deed = |count| Deed { what: "consumers.remove", target: consumer, count, letters: &[] };
        let mut removed = 0;
        loop {
            let mut tx = self.pool.begin().await?;
            let batch = sqlx::query(handled.clone()).bind(consumer).bind(BATCH);
            let rows = batch.execute(&mut *tx).await?.rows_affected();
            if rows == 0 {
                break;
            }
            let count = i64::try_from(rows).unwrap_or(i64::MAX);
            record(&mut tx, &self.schema, operator, &deed(count)).await?;
            tx.commit().await?;
            removed += rows;
        }
        let mut tx = self.pool.begin().await?;
        let letters =
            self.schema.statement("delete from pillarbox.inbox_dead_letter where consumer = $1");
        sqlx::query(letters).bind(consumer).execute(&mut *tx).await?;
        for table in TABLES {
            let sql = format!("delete from pillarbox.{table} where consumer = $1");
            sqlx::query(self.schema.statement(&sql)).bind(consumer).execute(&mut *tx).await?;
        }
        // The parts of one run are listed as one action, so this adds nothing to the count.
        record(&mut tx, &self.schema, operator, &deed(0)).await?;
        tx.commit().await?;
        Ok(removed)
    }
}
