//! The file with the tokens of those who may log in.

use std::fmt;
use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Role, Visitor};

/// The shortest token. A shorter one could be guessed.
const SHORTEST: usize = 24;
/// The longest name.
const LONGEST_NAME: usize = 64;

/// The tokens, of which only digests are kept.
///
/// The file has one line for each person or program: role, name and token, separated by spaces. The role is `viewer` or
/// `operator`. The token has at least 24 characters; `openssl rand -base64 32` makes one. Empty lines, and lines that
/// begin with `#`, mean nothing.
#[derive(Clone)]
pub struct Tokens(Vec<(Visitor, [u8; 32])>);

/// A file of tokens that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokensError {
    /// The file cannot be read.
    #[error("the token file {file} cannot be read")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Other accounts of the machine can read or change the file.
    #[error(
        "other accounts of this machine can read or change the token file {file}: run chmod o-rwx,g-w {file}"
    )]
    Exposed {
        /// The file.
        file: String,
    },
    /// A line is wrong.
    #[error("line {line} of the token file cannot be used: {problem}")]
    Line {
        /// Its number.
        line: usize,
        /// What is wrong with it. It does not contain the token.
        problem: &'static str,
    },
    /// The file has no token.
    #[error(
        "the token file has no token: write a line such as `operator anna TOKEN`, with a token of at least 24 characters"
    )]
    Empty,
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// [`TokensError`], also if other accounts of the machine can read or change the file.
    pub fn read(file: &Path) -> Result<Self, TokensError> {
        let shown = file.display().to_string();
        let cannot = |source| TokensError::Read { file: shown.clone(), source };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(file).map_err(cannot)?.permissions().mode();
            // The group may read: Kubernetes gives a mounted secret to a pod that way.
            if mode & 0o027 != 0 {
                return Err(TokensError::Exposed { file: shown });
            }
        }
        Self::parse(&std::fs::read_to_string(file).map_err(cannot)?)
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let mut tokens: Vec<(Visitor, [u8; 32])> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |problem| TokensError::Line { line: at + 1, problem };
            let words: Vec<&str> = line.split_whitespace().collect();
            let &[role, name, token] = &*words else {
                return Err(wrong("it must have three words: role, name and token"));
            };
            let role = Role::named(role).ok_or(wrong("the role must be viewer or operator"))?;
            if name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
                return Err(wrong("the name must have at most 64 bytes and no control characters"));
            }
            if token.len() < SHORTEST {
                return Err(wrong("the token must have at least 24 characters"));
            }
            let digest = digest(token);
            if tokens.iter().any(|(_, other)| *other == digest) {
                return Err(wrong("the token is that of another line"));
            }
            tokens.push((Visitor { name: name.to_owned(), role }, digest));
        }
        if tokens.is_empty() { Err(TokensError::Empty) } else { Ok(Self(tokens)) }
    }

    /// Whose token this is. How long it takes does not depend on the token.
    pub(crate) fn visitor(&self, token: &str) -> Option<&Visitor> {
        let asked = digest(token);
        let mut found = None;
        for (visitor, digest) in &self.0 {
            if bool::from(asked.ct_eq(digest)) {
                found = Some(visitor);
            }
        }
        found
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(visitor, _)| visitor)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANNA: &str = "anna-0123456789-0123456789";

    #[test]
    fn a_token_belongs_to_whom_the_file_says() {
        let file =
            format!("# who\n\n operator anna {ANNA}\nviewer ben ben-0123456789-0123456789\n");
        let tokens = Tokens::parse(&file).unwrap();
        let role = |token: &str| tokens.visitor(token).map(|visitor| visitor.role);
        assert_eq!(role(ANNA), Some(Role::Operator));
        assert_eq!(role("ben-0123456789-0123456789"), Some(Role::Viewer));
        for wrong in ["", "anna", &ANNA[1..], &format!("{ANNA} "), &ANNA.to_uppercase()] {
            assert_eq!(role(wrong), None, "{wrong}");
        }
        assert!(!format!("{tokens:?}").contains(ANNA));
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_showing_the_token() {
        let twice = format!("viewer a {ANNA}\noperator b {ANNA}");
        for wrong in [
            "",
            "# nothing",
            "operator anna short",
            "root anna 0123456789012345678901234",
            &twice,
            "operator 0123456789012345678901234",
            "operator anna b 0123456789012345678901234",
        ] {
            let error = Tokens::parse(wrong).unwrap_err().to_string();
            assert!(!error.contains("0123456789"), "{error}");
        }
    }
}
