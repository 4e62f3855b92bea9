//! `cargo xtask bench`: benchmarks in PostgreSQL.

use std::process::ExitCode;

/// Says where benchmarks are until then.
pub fn command() -> ExitCode {
    eprintln!("bench comes with the performance work; until then: cargo bench -p bqx-core");
    ExitCode::from(2)
}
