//! Transactions that stay open, events that cannot be handled, and a database without a connection left.

use std::time::Duration;

use sqlx::{Connection, PgConnection, Postgres, Transaction};
use tokio::time::sleep;

use crate::event::{Drawn, Kind, draw};
use crate::role::WriterNote;
use crate::world::World;

/// How long to wait before two transactions overtake each other, so that the relay comes to rest.
const REST: Duration = Duration::from_millis(150);

/// A transaction takes its id, publishes under a key of its own, and commits after a while.
pub(super) async fn leave_open(world: &World, open: Duration) -> anyhow::Result<String> {
    let key = new_key(world).await?;
    let mut connection = PgConnection::connect(world.outbox_url()).await?;
    let mut written = Written::begin(world, &mut connection).await?;
    written.draw(&key, &[Kind::Plain; 3]).await?;
    sleep(open).await;
    written.draw(&key, &[Kind::Plain; 2]).await?;
    written.commit().await?;
    Ok(format!("five events of {key}"))
}

/// The case for which the floor of the relay's cursor lags: the transaction with the later id draws the lower position,
/// and is still open when the other one's rows are read. At that moment nothing shows that it is running.
pub(super) async fn overtake(world: &World, later: Duration) -> anyhow::Result<String> {
    let (low, high) = (new_key(world).await?, new_key(world).await?);
    let mut connections = [
        PgConnection::connect(world.outbox_url()).await?,
        PgConnection::connect(world.outbox_url()).await?,
    ];
    sleep(REST).await;
    let [first, second] = &mut connections;
    let mut first = Written::begin(world, first).await?;
    let mut second = Written::begin(world, second).await?;
    second.draw(&low, &[Kind::Plain]).await?;
    first.draw(&high, &[Kind::Plain]).await?;
    first.commit().await?;
    sleep(later).await;
    second.commit().await?;
    Ok(format!("{high} before {low}"))
}

/// An event that cannot take effect, between two that can.
pub(super) async fn poison(world: &World, kind: Kind) -> anyhow::Result<String> {
    let key = world.some_key();
    let mut connection = PgConnection::connect(world.outbox_url()).await?;
    let mut written = Written::begin(world, &mut connection).await?;
    let drawn = written.draw(&key, &[Kind::Plain, kind, Kind::Plain]).await?;
    written.commit().await?;
    Ok(format!("{} of {key}", drawn.get(1).map_or("", |drawn| &drawn.id)))
}

/// Takes every connection that the database still has.
pub(super) async fn exhaust(world: &World, held: Duration) -> anyhow::Result<String> {
    let mut taken = Vec::new();
    while let Ok(connection) = PgConnection::connect(world.outbox_url()).await {
        taken.push(connection);
    }
    let many = taken.len();
    sleep(held).await;
    for connection in taken {
        let _ = connection.close().await;
    }
    anyhow::ensure!(many > 0, "there was no connection to take");
    Ok(format!("{many} connections"))
}

/// A key that no writer uses.
pub(super) async fn new_key(world: &World) -> anyhow::Result<String> {
    let key = world.long_key();
    sqlx::query("insert into counter (key) values ($1)").bind(&key).execute(&world.outbox).await?;
    Ok(key)
}

/// A transaction of a fault. Like a writer, it records what becomes of it.
pub(super) struct Written<'w> {
    world: &'w World,
    pub(super) tx: Transaction<'w, Postgres>,
    name: String,
}

impl<'w> Written<'w> {
    /// Begins one, and takes its id.
    pub(super) async fn begin(
        world: &'w World,
        connection: &'w mut PgConnection,
    ) -> anyhow::Result<Self> {
        let name = world.transaction_name();
        world.journal.note(WriterNote::Begun { tx: name.clone() })?;
        let mut tx = connection.begin().await?;
        sqlx::query("select pg_current_xact_id()::text").fetch_one(&mut *tx).await?;
        Ok(Self { world, tx, name })
    }

    pub(super) async fn draw(&mut self, key: &str, kinds: &[Kind]) -> anyhow::Result<Vec<Drawn>> {
        let events = draw(&mut self.tx, Some(key), kinds).await?;
        let drew = WriterNote::Drew { tx: self.name.clone(), events: events.clone() };
        self.world.journal.note(drew)?;
        Ok(events)
    }

    pub(super) async fn commit(self) -> anyhow::Result<()> {
        let Self { world, tx, name } = self;
        world.journal.note(match tx.commit().await {
            Ok(()) => WriterNote::Committed { tx: name },
            Err(error) => WriterNote::Unknown { tx: name, error: error.to_string() },
        })
    }
}
