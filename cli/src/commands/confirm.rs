//! Asking before a command does much.

use std::io::IsTerminal;

use super::Done;

/// Asks whether to do what `what` says, and returns an error unless the answer is yes. `verb` is what is done, as in
/// `send`, and `done` is the same afterwards, as in `sent`.
pub(super) fn confirm(what: &str, verb: &str, done: &str) -> Done {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(format!(
            "{what} Nothing was {done}: give --yes to {verb} them, or --dry-run to count them"
        )
        .into());
    }
    eprint!("{what} Do you want to {verb} them? [y/N] ");
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(format!("nothing was {done}").into()),
    }
}
