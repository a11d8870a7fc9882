//! What an event in the outbox costs a business transaction.
//!
//! `cargo bench --bench outbox_rate -- --help` lists the arguments; `src/subjects/outbox_rate.rs` says what it
//! measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::outbox_rate()
}
