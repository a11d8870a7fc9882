//! How long an event takes from the writer to the end of its handler, against a bare publish and receive.
//!
//! `cargo bench --bench delivery_latency -- --help` lists the arguments; `src/subjects/delivery_latency.rs` says what
//! is done.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::delivery_latency()
}
