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
    /// Positions up to this one are drawn by nobody: loads may use them.
    free: Position,
    written: usize,
    loaded: usize,
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

/// A row of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub position: Position,
    pub key: u8,
    /// The `txid` of a row that was loaded, whatever that says. Others have their transaction's.
    pub carried: Option<Xid>,
}

/// What a loaded row carries for an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carried {
    /// One of another cluster that is smaller than all that are given out here.
    Behind,
    /// One of another cluster, which this one has not come to.
    Ahead,
    /// Its own: the column was left out, and only the position is the loader's.
    Own,
    /// One that, by chance, another transaction has that runs here.
    Running,
}

const BEHIND: Xid = 1;
const AHEAD: Xid = 1_000;
/// The keys of loaded rows begin here. Each is alone: nothing is promised of the order of what is loaded.
const LOADED_KEYS: u8 = 100;

impl Postgres {
    /// One without rows. `free`: so many positions at the beginning are left out by the sequence.
    pub fn new(free: usize) -> Self {
        let free = Position::try_from(free).unwrap();
        Self {
            transactions: Vec::new(),
            latest_completed: 0,
            next_position: free + 1,
            free,
            written: 0,
            loaded: 0,
        }
    }

    /// Rows with these ids are restored from a dump, and the sequence with them.
    pub fn restore(&mut self, carried: &[Xid]) -> Vec<Position> {
        self.begin();
        let number = self.begun() - 1;
        let positions = carried.iter().map(|carried| self.load(number, *carried, false)).collect();
        self.end(number, Fate::Committed);
        self.loaded = 0;
        positions
    }

    /// How many writers' transactions have taken an id.
    pub fn begun(&self) -> usize {
        self.transactions.len()
    }

    /// How many rows have been written, also by transactions that were rolled back.
    pub fn written(&self) -> usize {
        self.written
    }

    /// How many rows have been loaded, also by transactions that were rolled back.
    pub fn loaded(&self) -> usize {
        self.loaded
    }

    /// Whether the sequence does not draw this position.
    pub fn is_free(&self, position: Position) -> bool {
        position <= self.free
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
        let own = rows().filter(|row| row.carried.is_none());
        let unused = own.map(|row| row.key + 1).max().unwrap_or(0);
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
        let position = self.draw();
        self.transactions[number].rows.push(Row { position, key, carried: None });
        self.written += 1;
    }

    /// The ids of these kinds that a row may carry which this transaction loads.
    pub fn loadable(&self, number: usize, below: bool, kinds: &[Carried]) -> Vec<Xid> {
        let others = || self.running().map(|(other, _)| id(other)).filter(|xid| *xid != id(number));
        let ids = |kind: &Carried| match kind {
            Carried::Behind => vec![BEHIND],
            Carried::Ahead => vec![AHEAD],
            // At the next position it would be an ordinary row.
            Carried::Own => {
                if below {
                    vec![id(number)]
                } else {
                    Vec::new()
                }
            }
            // Below, nothing tells it from a savepoint's: docs/model.md.
            Carried::Running => {
                if below {
                    Vec::new()
                } else {
                    others().collect()
                }
            }
        };
        kinds.iter().flat_map(ids).collect()
    }

    /// A transaction loads a row with this id: at a position that the sequence gives, or `below` all of these. Answers
    /// where it is.
    pub fn load(&mut self, number: usize, carried: Xid, below: bool) -> Position {
        let taken = Position::try_from(self.loaded).unwrap();
        let position = if below { taken + 1 } else { self.draw() };
        let key = LOADED_KEYS + u8::try_from(position).unwrap();
        self.transactions[number].rows.push(Row { position, key, carried: Some(carried) });
        self.loaded += 1;
        position
    }

    fn draw(&mut self) -> Position {
        self.next_position += 1;
        self.next_position - 1
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

    /// All rows with the id that put them here (`xmin`) and what became of them, in the order of ids.
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
            for Row { position, key, carried } in &transaction.rows {
                match carried {
                    Some(carried) => write!(f, ", position {position} carrying id {carried}")?,
                    None => write!(f, ", position {position} key {key}")?,
                }
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
