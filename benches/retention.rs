//! What removing a million shipped rows costs the writers of an outbox. They should not notice it.
//!
//! `cargo bench --bench retention -- --help` lists the arguments; `src/subjects/retention.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::retention()
}
