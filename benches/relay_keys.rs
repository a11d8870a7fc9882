//! What keys cost: one key, few, many or none, with either way of storing.
//!
//! `cargo bench --bench relay_keys -- --help` lists the arguments; `src/subjects/relay_keys.rs` says what is done.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::relay_keys()
}
