//! What a saga's step costs, against a plain handler that writes the same rows, and beside many open instances.
//!
//! `cargo bench --bench saga_rate -- --help` lists the arguments; `src/subjects/saga_rate.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::saga_rate()
}
