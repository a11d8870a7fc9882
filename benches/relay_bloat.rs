//! What a transaction left open, and the dead rows of a million events, cost a relay.
//!
//! `cargo bench --bench relay_bloat -- --help` lists the arguments; `src/subjects/relay_bloat.rs` says what it
//! measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::relay_bloat()
}
