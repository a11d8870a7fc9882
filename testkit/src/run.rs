//! Runs a helper program to its end.

use std::process::Command;

use crate::error::{IoContext, TestkitError};

pub(crate) fn run(command: &mut Command) -> Result<(), TestkitError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().context(format!("running {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(15)..].join("\n");
    Err(TestkitError::Program { program, status: output.status, output: last })
}
