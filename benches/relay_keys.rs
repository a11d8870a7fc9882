//! What keys cost: one key, few, many or none, with either way of storing.
//!
//! `cargo bench --bench relay_keys -- --help` lists the arguments; `src/subjects/relay_keys.rs` says what is done.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::main::<pillarbox_benches::subjects::RelayKeys>()
}
