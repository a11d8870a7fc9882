//! What is shown during the day: a line that is updated, and lines that stay.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stdout};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Screen {
    started: Instant,
    terminal: bool,
    next: Cell<Duration>,
}

impl Screen {
    pub fn new() -> Self {
        let terminal = stdout().is_terminal();
        Self { started: Instant::now(), terminal, next: Cell::new(Duration::ZERO) }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        self.print(&format!("{text}\n"));
    }

    /// The line that is updated. In a file it is a new line each second.
    pub fn update(&self, text: &str) {
        if self.terminal {
            self.print(text);
        } else if self.started.elapsed() >= self.next.get() {
            self.next.set(self.started.elapsed() + Duration::from_secs(1));
            self.say(text);
        }
    }

    fn print(&self, text: &str) {
        let back = if self.terminal { "\r\x1b[2K" } else { "" };
        let mut out = stdout().lock();
        // If nobody reads the output, there is nothing to do.
        let _ = write!(out, "{back}{:5.1} s  {text}", self.started.elapsed().as_secs_f32());
        let _ = out.flush();
    }
}
