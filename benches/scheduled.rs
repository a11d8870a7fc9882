//! How soon scheduled events leave after they are due, how fast many leave, and whether pending ones slow shipping
//! down.
//!
//! `cargo bench --bench scheduled -- --help` lists the arguments; `src/subjects/scheduled.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::scheduled()
}
