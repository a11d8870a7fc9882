//! What the inbox costs a consumer, against the same handler and acknowledgements without it.
//!
//! `cargo bench --bench inbox_rate -- --help` lists the arguments; `src/subjects/inbox_rate.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::inbox_rate()
}
