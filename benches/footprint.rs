//! What an event takes: bytes of the tables, of the write-ahead log and of the stream.
//!
//! `cargo bench --bench footprint -- --help` lists the arguments; `src/subjects/footprint.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::footprint()
}
