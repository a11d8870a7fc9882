//! Notes of a process that outlive the process.
//!
//! Each note is one line of JSON, written to a file by a single `write`. When the call returns, the kernel has the
//! line, so it survives a SIGKILL of the process. Each incarnation of a process has a file of its own.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A time in microseconds since 1970. All processes of a run and its servers use the same clock.
pub type At = i64;

/// The time now.
pub fn now() -> At {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// A note, and when it was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Noted<T> {
    /// When.
    pub at: At,
    /// What.
    pub what: T,
}

/// A file of notes.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens a new file, or the end of an existing one.
    ///
    /// # Errors
    /// The error of the file system.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: file.with_context(|| format!("opening {}", path.display()))? })
    }

    /// Writes a note.
    ///
    /// # Errors
    /// What the file system says.
    pub fn note<T: Serialize>(&self, what: T) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&Noted { at: now(), what })?;
        line.push(b'\n');
        (&self.file).write_all(&line).context("writing a journal")
    }
}

/// Reads all notes in a file. If a kill has cut the last line short, that line is left out.
///
/// # Errors
/// The error of the file system, or of a line that cannot be read, unless it is the last one.
pub fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<Noted<T>>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = |line: &str| {
        serde_json::from_str(line).with_context(|| format!("{}: {line:?}", path.display()))
    };
    whole.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_back_but_for_one_that_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        for number in 0..3 {
            journal.note(number).unwrap();
        }
        (&journal.file).write_all(b"{\"at\":1,\"wh").unwrap();
        let read: Vec<i32> =
            super::read(&path).unwrap().into_iter().map(|noted| noted.what).collect();
        assert_eq!(read, [0, 1, 2]);
    }
}
