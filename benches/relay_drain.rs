//! How fast a relay drains a backlog, compared with publishing the same messages without a database.
//!
//! `cargo bench --bench relay_drain -- --help` lists the arguments; `src/subjects/relay_drain.rs` says what it
//! measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::relay_drain()
}
