//! The minimum rights that each part needs in the database, as SQL for the tables' owner to run.
//!
//! | role | who | what it may do |
//! |---|---|---|
//! | writer | a service that publishes | insert into the outbox; schedule events and cancel them |
//! | relay | the relay | read the outbox, remove old rows, its own row and dead letters; release what is due |
//! | consumer | a service that handles events | the inbox's tables |
//! | trail | the process that follows the streams | the trail's tables |
//! | operator | people and monitoring | read everything but events in flight; resolve dead letters |

use std::collections::BTreeMap;
use std::fmt;

/// The comment above the statements that create roles.
const ROLES_NOTE: &str = "\
-- The roles, if they do not exist. They cannot log in: make each account a member of the role that it needs
-- (`grant pillarbox_relay to shop`), or name accounts that exist already (--role relay=shop).
--
-- Run this as the owner of the tables, after the tables exist. Creating roles needs the right to do so; without it,
-- have the roles created first. You can run all of this again, for example after an update: it only adds.
";
const ROLE_SQL: &str = include_str!("../grants/role.sql");
const OUTBOX_SQL: &str = include_str!("../grants/outbox.sql");
const INBOX_SQL: &str = include_str!("../grants/inbox.sql");
const TRAIL_SQL: &str = include_str!("../grants/trail.sql");

/// What a role does with the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Publishes events.
    Writer,
    /// Ships events.
    Relay,
    /// Handles events.
    Consumer,
    /// Records what goes through the streams, without payloads.
    Trail,
    /// Monitors all of this and resolves dead letters.
    Operator,
}

impl Duty {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Writer, Self::Relay, Self::Consumer, Self::Trail, Self::Operator];

    /// The duty's name. The default role's name ends with it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Relay => "relay",
            Self::Consumer => "consumer",
            Self::Trail => "trail",
            Self::Operator => "operator",
        }
    }
}

/// Which role has which duty.
#[derive(Clone, Debug)]
pub struct Roles(BTreeMap<Duty, String>);

/// A role's name that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "role {0:?} cannot be used: a role's name must have 1 to 63 bytes and no quotes, backslashes, dollar signs or \
     control characters"
)]
pub struct RoleError(String);

impl Roles {
    /// `<prefix>_writer`, `<prefix>_relay`, `<prefix>_consumer`, `<prefix>_trail` and `<prefix>_operator`.
    ///
    /// # Errors
    /// [`RoleError`] if a resulting name cannot be used.
    pub fn with_prefix(prefix: &str) -> Result<Self, RoleError> {
        let mut roles = Self(BTreeMap::new());
        for duty in Duty::ALL {
            roles = roles.with(duty, &format!("{prefix}_{}", duty.as_str()))?;
        }
        Ok(roles)
    }

    /// The same roles, with another role for one duty. One role may have several duties.
    ///
    /// # Errors
    /// [`RoleError`] if the name cannot be used.
    pub fn with(mut self, duty: Duty, role: &str) -> Result<Self, RoleError> {
        let refused = |c: char| c.is_control() || matches!(c, '\'' | '"' | '\\' | '$');
        if role.is_empty() || role.len() > 63 || role.chars().any(refused) {
            return Err(RoleError(role.chars().take(80).collect()));
        }
        self.0.insert(duty, role.to_owned());
        Ok(self)
    }

    fn get(&self, duty: Duty) -> &str {
        self.0.get(&duty).map_or(duty.as_str(), String::as_str)
    }
}

/// Which tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// The producer's.
    Outbox,
    /// The consumer's.
    Inbox,
    /// The trail's.
    Trail,
}

impl Tables {
    fn concern(self, duty: Duty) -> bool {
        match self {
            Self::Outbox => matches!(duty, Duty::Writer | Duty::Relay | Duty::Operator),
            Self::Inbox => matches!(duty, Duty::Consumer | Duty::Operator),
            Self::Trail => matches!(duty, Duty::Trail | Duty::Operator),
        }
    }
}

/// The statements that create missing roles and grant them the rights on these tables in this schema. The caller must
/// have checked that `schema` is a plain lower-case word. The statements run unchanged in psql or any other tool, and
/// running them again does no harm.
pub fn sql(schema: &str, roles: &Roles, tables: &[Tables]) -> String {
    let rename = |text: &str| -> String {
        text.split_inclusive('\n').map(|line| rename(line, schema, roles)).collect()
    };
    let mut text = rename(ROLES_NOTE);
    for duty in Duty::ALL {
        if tables.iter().any(|tables| tables.concern(duty)) {
            let role = ROLE_SQL.replace("pillarbox_role", &format!("pillarbox_{}", duty.as_str()));
            text.push_str(&rename(&role));
        }
    }
    for tables in tables {
        text.push('\n');
        text.push_str(&rename(match tables {
            Tables::Outbox => OUTBOX_SQL,
            Tables::Inbox => INBOX_SQL,
            Tables::Trail => TRAIL_SQL,
        }));
    }
    text
}

/// One right on one relation, on one of its columns, or on a function.
#[derive(Debug, PartialEq, Eq)]
pub struct Need {
    /// The table or sequence, without its schema; or the function, with the types of its parameters.
    pub relation: String,
    /// The right, in lower case.
    pub privilege: String,
    /// The column. `None`: the whole relation.
    pub column: Option<String>,
}

/// The rights that a duty needs on the outbox's tables, or the trail on its own, read from the statements that grant them.
pub fn needs(duty: Duty) -> Vec<Need> {
    let to = format!(" to pillarbox_{};", duty.as_str());
    let granted = if duty == Duty::Trail { TRAIL_SQL } else { OUTBOX_SQL };
    let mut needs = Vec::new();
    for line in granted.lines().map(str::trim) {
        let Some((privileges, relation)) =
            line.strip_prefix("grant ").and_then(|rest| rest.strip_suffix(&to)).and_then(|rest| {
                rest.split_once(" on pillarbox.")
                    .or_else(|| rest.split_once(" on function pillarbox."))
            })
        else {
            continue;
        };
        let of_all = |privilege: &str, column: Option<&str>| Need {
            relation: relation.to_owned(),
            privilege: privilege.trim().to_owned(),
            column: column.map(|column| column.trim().to_owned()),
        };
        match privileges.split_once('(') {
            Some((privilege, columns)) => needs.extend(
                columns
                    .trim_end_matches(')')
                    .split(',')
                    .map(|column| of_all(privilege, Some(column))),
            ),
            None => needs.extend(privileges.split(',').map(|privilege| of_all(privilege, None))),
        }
    }
    needs
}

/// Replaces the names word by word, so that an inserted name is not replaced again.
fn rename(line: &str, schema: &str, roles: &Roles) -> String {
    // In a comment, `pillarbox` is the program, which keeps its name.
    let comment = line.trim_start().starts_with("--");
    let mut written = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("pillarbox") {
        let (before, from) = rest.split_at(start);
        written.push_str(before);
        let end = from.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        let duty =
            Duty::ALL.into_iter().find(|duty| word == format!("pillarbox_{}", duty.as_str()));
        match duty {
            Some(duty) if after.starts_with('\'') => written.push_str(roles.get(duty)),
            Some(duty) => written.push_str(&Identifier(roles.get(duty)).to_string()),
            None if word == "pillarbox" && !comment => written.push_str(schema),
            None => written.push_str(word),
        }
        rest = after;
    }
    written.push_str(rest);
    written
}

/// A role's name in a statement, in quotes where it needs them.
struct Identifier<'a>(&'a str);

impl fmt::Display for Identifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = self.0.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && self.0.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && self.0.contains('_');
        if plain { f.write_str(self.0) } else { write!(f, "\"{}\"", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_in_word_by_word() {
        let roles = Roles::with_prefix("shop")
            .unwrap()
            .with(Duty::Writer, "shop-app@project.iam")
            .unwrap()
            .with(Duty::Relay, "pillarbox_writer")
            .unwrap();
        let text = sql("billing", &roles, &[Tables::Outbox]);
        assert!(
            text.contains("grant usage on schema billing to \"shop-app@project.iam\";"),
            "{text}"
        );
        assert!(text.contains("rolname = 'shop-app@project.iam'"), "{text}");
        assert!(text.contains("delete on billing.outbox to pillarbox_writer;"), "{text}");
        assert!(text.contains("`pillarbox doctor`"), "the program keeps its name: {text}");
        assert!(
            !text.contains("billing_") && !text.contains("inbox") && !text.contains("consumer"),
            "{text}"
        );
    }

    #[test]
    fn needs_are_read_off_the_statements() {
        let needs = needs(Duty::Relay);
        let need = |relation: &str, privilege: &str, column: Option<&str>| Need {
            relation: relation.into(),
            privilege: privilege.into(),
            column: column.map(str::to_owned),
        };
        for wanted in [
            need("outbox", "select", None),
            need("outbox", "delete", None),
            need("relay", "insert", None),
            need("outbox_position_seq", "select", None),
            need("release_scheduled(text, bigint, integer, boolean, timestamptz)", "execute", None),
        ] {
            assert!(needs.contains(&wanted), "{wanted:?} in {needs:?}");
        }
        let statements = OUTBOX_SQL.lines().filter(|line| {
            line.starts_with("grant ")
                && (line.contains(" on pillarbox.") || line.contains(" on function pillarbox."))
                && line.contains("to pillarbox_relay")
        });
        assert_eq!(statements.count(), 11, "each is on one line, and for one role");
        assert_eq!(needs.len(), 33);

        let needs = super::needs(Duty::Trail);
        assert!(needs.contains(&need("trail_stream", "update", None)), "{needs:?}");
        assert!(needs.contains(&need("trail_days(date[])", "execute", None)), "{needs:?}");
        assert_eq!(needs.len(), 7);
    }

    #[test]
    fn a_role_that_could_break_out_of_its_quotes_is_refused() {
        for role in ["", "a\"b", "a'b", "a\\b", "a$$b", "a\nb", &"x".repeat(64)] {
            assert!(Roles::with_prefix("p").unwrap().with(Duty::Relay, role).is_err(), "{role:?}");
        }
        assert!(Roles::with_prefix(&"x".repeat(60)).is_err());
    }
}
