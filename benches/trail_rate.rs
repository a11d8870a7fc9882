//! How fast a trail records what a stream holds, and what a trail that reads along costs the relay.
//!
//! `cargo bench --bench trail_rate -- --help` lists the arguments; `src/subjects/trail_rate.rs` says what it measures.

fn main() -> anyhow::Result<()> {
    pillarbox_benches::subjects::trail_rate()
}
