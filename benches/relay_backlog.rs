//! Whether a large backlog slows a relay down, or fills its memory.
//!
//! `cargo bench --bench relay_backlog -- --help` lists the arguments; `src/subjects/relay_backlog.rs` says what is
//! done.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::relay_backlog()
}
