//! `pillarbox completions`.

use clap::Args;
use clap_complete::Shell;

use super::Done;

/// Print a shell's completions for this program.
///
/// For bash: pillarbox completions bash > /etc/bash_completion.d/pillarbox.
/// For zsh: into a file `_pillarbox` in a folder of $fpath.
/// For fish: into ~/.config/fish/completions/pillarbox.fish.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Done {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "pillarbox", &mut script);
        super::print(&script)
    }
}
