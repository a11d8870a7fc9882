//! What removing a million shipped rows costs the writers of an outbox: nothing that they would notice.
//!
//! `cargo bench --bench retention -- --help` lists the arguments; `src/subjects/retention.rs` says what is done.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::retention()
}
