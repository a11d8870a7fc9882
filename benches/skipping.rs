//! How fast a consumer skips events that come again after they were handled, against handling new ones.
//!
//! `cargo bench --bench skipping -- --help` lists the arguments; `src/subjects/skipping.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::skipping()
}
