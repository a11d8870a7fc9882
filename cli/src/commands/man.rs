//! `pillarbox man`.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Done, EXIT_CODES};

/// Print this program's manual page, or write the pages of all commands to files.
#[derive(Debug, Args)]
pub(crate) struct ManPages {
    /// Write the page of each command into this folder, such as /usr/local/share/man/man1. The folder is created if it
    /// does not exist.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

impl ManPages {
    pub(crate) fn run(self) -> Done {
        let mut command = super::command().disable_help_subcommand(true);
        command.build();
        match self.dir {
            None => super::print(&page(&command)?),
            Some(folder) => {
                std::fs::create_dir_all(&folder)
                    .map_err(|error| format!("folder {}: {error}", folder.display()))?;
                let written = write_all(&folder, &command)?;
                super::print(&format!("{written} pages in {}\n", folder.display()))
            }
        }
    }
}

/// Writes the command's page and the pages of its subcommands.
fn write_all(folder: &Path, command: &Command) -> Result<usize, Box<dyn std::error::Error>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let file = folder.join(format!("{name}.1"));
    std::fs::write(&file, page(command)?)
        .map_err(|error| format!("file {}: {error}", file.display()))?;
    let mut written = 1;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        written += write_all(folder, below)?;
    }
    Ok(written)
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    // The exit codes get a section of their own below.
    let man = Man::new(command.clone().after_help(None::<&str>));
    let mut page = Vec::new();
    man.render(&mut page)?;
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in EXIT_CODES {
        roff.control("TP", []);
        roff.text([roman(code)]);
        roff.text([roman(meaning)]);
    }
    page.extend_from_slice(roff.to_roff().as_bytes());
    Ok(page)
}
