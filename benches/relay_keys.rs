//! What keys cost: one key, few keys, many keys or none, with fast ingest and with the keyed window.
//!
//! `cargo bench --bench relay_keys -- --help` lists the arguments; `src/subjects/relay_keys.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::relay_keys()
}
