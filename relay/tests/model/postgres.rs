//! What of Postgres the cursor rests on: transaction ids, snapshots, positions, row locks.
//!
//! Only the order of ids is ever looked at, so they are numbered by it: the n-th transaction of a writer to
//! take an id has `2 n`, and an id that the relay spends behind it has `2 n + 1`. Several ids spent with no
//! writer's between them are one number: no snapshot tells them apart.

use std::fmt;

use pillarbox_relay::cursor::{Snapshot, Xid};

/// A row's position in the outbox.
pub type Position = i64;

/// The database: its transactions in the order of their ids, and its counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Postgres {
    transactions: Vec<Transaction>,
    /// The latest id of which the transaction has ended: what `xmax` goes by.
    latest_completed: Xid,
    next_position: Position,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Transaction {
    fate: Fate,
    rows: Vec<Row>,
}

/// What has become of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    Running,
    Committed,
    RolledBack,
}

/// A row of the outbox, but for its `txid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub position: Position,
    pub key: u8,
}

impl Postgres {
    pub fn new() -> Self {
        Self { transactions: Vec::new(), latest_completed: 0, next_position: 1 }
    }

    /// How many writers' transactions have taken an id.
    pub fn begun(&self) -> usize {
        self.transactions.len()
    }

    /// How many rows have been written, also by transactions that were rolled back.
    pub fn written(&self) -> usize {
        usize::try_from(self.next_position - 1).unwrap()
    }

    /// The transactions that are running, by number, each with how many rows it has written.
    pub fn running(&self) -> impl Iterator<Item = (usize, usize)> {
        let all = self.transactions.iter().enumerate();
        all.filter(|(_, t)| t.fate == Fate::Running).map(|(number, t)| (number, t.rows.len()))
    }

    /// A transaction takes its id: at its first write, or early.
    pub fn begin(&mut self) {
        self.transactions.push(Transaction { fate: Fate::Running, rows: Vec::new() });
    }

    /// The keys that a transaction may write now: those that no other has locked, and of those that nobody has
    /// used yet the first only, as they are all alike.
    pub fn free_keys(&self, number: usize, keys: u8) -> impl Iterator<Item = u8> {
        let rows = || self.transactions.iter().flat_map(|t| &t.rows);
        let unused = rows().map(|row| row.key + 1).max().unwrap_or(0);
        let locked = move |key| {
            self.transactions.iter().enumerate().any(|(other, t)| {
                other != number
                    && t.fate == Fate::Running
                    && t.rows.iter().any(|row| row.key == key)
            })
        };
        (0..keys.min(unused + 1)).filter(move |key| !locked(*key))
    }

    /// A transaction locks the key, unless it has already, and writes a row for it. The position is drawn behind
    /// its id, and under the lock.
    pub fn insert(&mut self, number: usize, key: u8) {
        self.transactions[number].rows.push(Row { position: self.next_position, key });
        self.next_position += 1;
    }

    /// A transaction commits or is rolled back; its locks are free.
    pub fn end(&mut self, number: usize, fate: Fate) {
        let transaction = &mut self.transactions[number];
        transaction.fate = fate;
        self.latest_completed = self.latest_completed.max(id(number));
    }

    /// Forgets the rows of transactions that were rolled back, which nobody can see.
    pub fn vacuum(&mut self) {
        let dead = self.transactions.iter_mut().filter(|t| t.fate == Fate::RolledBack);
        dead.for_each(|t| t.rows.clear());
    }

    /// The relay takes an id and commits. Nobody looks in between, so it is one step.
    pub fn spend_id(&mut self) {
        self.latest_completed = self.latest_completed.max(id(self.begun()) - 1);
    }

    /// `pg_current_snapshot()`. `xmax` is the latest *completed* id plus one: those that run at or above it are
    /// not listed.
    pub fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_completed + 1;
        let listed: Vec<String> = self
            .running()
            .map(|(number, _)| id(number))
            .filter(|id| *id < xmax)
            .map(|id| id.to_string())
            .collect();
        let xmin = listed.first().cloned().unwrap_or_else(|| xmax.to_string());
        format!("{xmin}:{xmax}:{}", listed.join(",")).parse().unwrap()
    }

    /// All rows with their `txid` and what became of them, in the order of ids.
    pub fn rows(&self) -> impl Iterator<Item = (Xid, Row, Fate)> {
        let all = self.transactions.iter().enumerate();
        all.flat_map(|(number, t)| t.rows.iter().map(move |row| (id(number), *row, t.fate)))
    }

    /// The committed rows: what every new statement sees.
    pub fn committed(&self) -> impl Iterator<Item = Row> {
        self.rows().filter(|(_, _, fate)| *fate == Fate::Committed).map(|(_, row, _)| row)
    }

    /// Whether a transaction runs that a snapshot taken now would not list.
    pub fn runs_unlisted(&self) -> bool {
        self.running().any(|(number, _)| id(number) > self.latest_completed)
    }
}

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, transaction) in self.transactions.iter().enumerate() {
            let fate = match transaction.fate {
                Fate::Running => "runs",
                Fate::Committed => "has committed",
                Fate::RolledBack => "was rolled back",
            };
            write!(f, "{} (id {}) {fate}", name(number), id(number))?;
            for Row { position, key } in &transaction.rows {
                write!(f, ", position {position} key {key}")?;
            }
            f.write_str("; ")?;
        }
        write!(f, "now {}", self.snapshot())
    }
}

/// How a transaction is called in stories.
pub fn name(number: usize) -> char {
    char::from(b'A' + u8::try_from(number).unwrap())
}

fn id(number: usize) -> Xid {
    2 * (number as Xid + 1)
}
