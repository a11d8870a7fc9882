//! `pillarbox dead-letters`.

mod change;
mod summary;

use clap::{Args, Subcommand};
use pillarbox_store::SchemaError;
use pillarbox_store::actions::{ActionFilter, Actions};
use pillarbox_store::dead_letters::{DeadLetters, Filter, LetterState, LetterView, Side};
use pillarbox_store::dead_letters::{Groups, brief};

use self::change::{Content, Pace};
use self::summary::Summary;
use super::ages::seconds;
use super::limit::Limit;
use super::place::Place;
use super::signature::Signature;
use super::{Done, age, print, print_json_lines};
use crate::terminal::harmless;

/// Look at events that were given up, try them again, or discard them.
#[derive(Debug, Args)]
pub(crate) struct DeadLettersCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Count them by relay or consumer, event type, reason and kind of error. Begin here.
    ///
    /// Errors are of one kind if they differ only in numbers, ids and quoted values.
    Summary(Summary),
    /// List them, oldest first.
    List {
        #[command(flatten)]
        which: Which,
        /// Those in this state instead of the unresolved ones: dead, parked, discarded or retried.
        #[arg(long, value_parser = state)]
        state: Option<LetterState>,
        /// List at most this many.
        #[arg(long, default_value_t = 50)]
        limit: i64,
        /// Print one JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show one completely, with its headers, what operators have done to it, and what it was before it was edited.
    Show {
        #[command(flatten)]
        which: Which,
        /// The event's id.
        event_id: String,
        /// Write the payload, and only that, to standard output.
        #[arg(long)]
        payload: bool,
        /// With --payload: the payload with which an edited event was published.
        #[arg(long, requires = "payload")]
        original: bool,
    },
    /// Try them again.
    Retry {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        pace: Pace,
    },
    /// Discard them: they will not be shipped or handled. `restore` undoes that until retention removes them.
    Discard {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Make discarded ones dead again, so that they can be retried.
    Restore {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Change the payload or headers of dead ones, before they are retried. The original content is kept.
    ///
    /// The event keeps its id, source, type, topic and key, so it is still handled once at most.
    Edit {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        content: Content,
    },
}

#[derive(Debug, Args)]
struct Which {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    side: SideFlags,
    #[command(flatten)]
    only: Only,
}

/// The filters.
#[derive(Debug, Args)]
struct Only {
    /// Only those of this relay or consumer.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Only those with this reason.
    #[arg(long)]
    reason: Option<String>,
    /// Only those of this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only those of this key.
    #[arg(long)]
    key: Option<String>,
    /// Only the one at this position.
    #[arg(long)]
    position: Option<i64>,
    /// Only those whose event names this source.
    #[arg(long)]
    source: Option<String>,
    /// Only the dead letter with this number. `list --json` and `show` print the number; one event id may have several
    /// dead letters.
    #[arg(long, value_name = "NUMBER")]
    letter: Option<i64>,
    /// Only those of events of this type.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only those whose error contains this text, in upper or lower case. `%` stands for any text.
    #[arg(long, value_name = "TEXT")]
    error_like: Option<String>,
    /// Only those of this group. `summary` shows the groups.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only those given up at most this long ago: 90s, 15m, 1h or 2d. A number without a unit is in seconds.
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    since: Option<i64>,
    /// Only those given up at least this long ago: 90s, 15m, 1h or 2d. A number without a unit is in seconds.
    #[arg(long, value_name = "AGE", default_value = "0", value_parser = seconds)]
    older_than: i64,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SideFlags {
    /// Events that the relay could not ship.
    #[arg(long)]
    outbox: bool,
    /// Events that a handler gave up.
    #[arg(long)]
    inbox: bool,
}

#[derive(Debug, Args)]
struct Chosen {
    /// The event's id.
    #[arg(required_unless_present = "all")]
    event_id: Option<String>,
    /// All that match the filters.
    #[arg(long, conflicts_with = "event_id")]
    all: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// At most this many, the oldest first.
    #[arg(long, value_name = "LETTERS", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    /// Do it without asking, however many there are.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    signature: Signature,
}

/// How many characters of an error `list` shows.
const ERROR: usize = 80;

impl Which {
    async fn letters(&self) -> Result<Letters, Failed> {
        let side = if self.side.outbox { Side::Outbox } else { Side::Inbox };
        Ok(Open::at(&self.place).await?.letters(side)?)
    }

    fn filter(&self, event_id: Option<&String>, state: Option<LetterState>) -> Filter {
        self.only.filter(event_id, state)
    }
}

/// The database.
struct Open {
    pool: sqlx::PgPool,
    schema: String,
    limit: Limit,
}

impl Open {
    async fn at(place: &Place) -> Result<Self, Failed> {
        let (database, schema) = place.database()?;
        let limit = place.limit;
        let pool = limit.ask("let this command in", database.pool(2)).await?;
        Ok(Self { pool, schema, limit })
    }

    fn letters(&self, side: Side) -> Result<Letters, SchemaError> {
        let letters = DeadLetters::new(self.pool.clone(), &self.schema, side)?;
        let (pool, schema) = (self.pool.clone(), self.schema.clone());
        Ok(Letters { letters, side, limit: self.limit, pool, schema })
    }
}

impl Only {
    fn filter(&self, event_id: Option<&String>, state: Option<LetterState>) -> Filter {
        Filter {
            event_id: event_id.cloned(),
            reason: self.reason.clone(),
            topic: self.topic.clone(),
            key: self.key.clone(),
            owner: self.owner.clone(),
            older_than_s: self.older_than,
            state,
            position: self.position,
            source: self.source.clone(),
            letters: self.letter.map(|letter| vec![letter]),
            event_type: self.event_type.clone(),
            error_like: self.error_like.clone(),
            since_s: self.since,
            group: self.group.clone(),
        }
    }

    /// Each filter by itself: its flag and its value.
    fn each_alone(&self) -> Vec<(&'static str, String, Filter)> {
        let all = self.filter(None, None);
        let any = Filter::default;
        let number = |number: i64| number.to_string();
        let filters = [
            ("--owner", all.owner.clone(), Filter { owner: all.owner, ..any() }),
            ("--type", all.event_type.clone(), Filter { event_type: all.event_type, ..any() }),
            ("--reason", all.reason.clone(), Filter { reason: all.reason, ..any() }),
            ("--topic", all.topic.clone(), Filter { topic: all.topic, ..any() }),
            ("--key", all.key.clone(), Filter { key: all.key, ..any() }),
            ("--source", all.source.clone(), Filter { source: all.source, ..any() }),
            ("--position", all.position.map(number), Filter { position: all.position, ..any() }),
            ("--letter", self.letter.map(number), Filter { letters: all.letters, ..any() }),
            ("--group", all.group.clone(), Filter { group: all.group, ..any() }),
            (
                "--error-like",
                all.error_like.clone(),
                Filter { error_like: all.error_like, ..any() },
            ),
        ];
        filters
            .into_iter()
            .filter_map(|(flag, value, filter)| Some((flag, value?, filter)))
            .collect()
    }
}

type Failed = Box<dyn std::error::Error>;

/// The dead letters, with a time limit for every request.
struct Letters {
    letters: DeadLetters,
    side: Side,
    limit: Limit,
    pool: sqlx::PgPool,
    schema: String,
}

impl Letters {
    async fn list(&self, filter: &Filter, most: i64) -> Result<Vec<LetterView>, Failed> {
        self.limit.ask("list the dead letters", self.letters.list(filter, most)).await
    }

    async fn first(&self, filter: &Filter) -> Result<Option<LetterView>, Failed> {
        self.limit.ask("send a payload", self.letters.first(filter)).await
    }

    async fn count(&self, filter: &Filter) -> Result<i64, Failed> {
        self.limit.ask("count the dead letters", self.letters.count(filter)).await
    }

    async fn numbers(&self, filter: &Filter, most: i64) -> Result<Vec<i64>, Failed> {
        self.limit.ask("list the dead letters", self.letters.numbers(filter, most)).await
    }

    /// Says which of the filters match nothing even alone, because their values may be misspelt, and what would match.
    async fn say_unknown(&self, only: &Only) -> Done {
        let mut all = None;
        for (flag, value, filter) in only.each_alone() {
            if self.count(&filter).await? > 0 {
                continue;
            }
            let groups = match &all {
                Some(groups) => groups,
                None => all.insert(self.groups(&Filter::default()).await?),
            };
            let known = known(flag, groups);
            let side = name(self.side);
            let known = match known.is_empty() {
                true => "`pillarbox dead-letters summary` shows what there is".to_owned(),
                false => format!("there are {}", known.join(", ")),
            };
            let said =
                format!("no unresolved dead letter of the {side} matches {flag} {value}; {known}");
            eprintln!("pillarbox: {}", harmless(&said));
        }
        Ok(())
    }

    async fn groups(&self, filter: &Filter) -> Result<Groups, Failed> {
        self.limit.ask("read the errors of the dead letters", self.letters.groups(filter)).await
    }
}

impl DeadLettersCommand {
    pub(crate) async fn run(self) -> Done {
        match self.action {
            Action::Summary(command) => command.run().await,
            Action::List { which, state, limit, json } => {
                let (letters, filter) = (which.letters().await?, which.filter(None, state));
                let found = letters.list(&filter, limit).await?;
                if found.is_empty() {
                    letters.say_unknown(&which.only).await?;
                }
                if json {
                    return print_json_lines(&found);
                }
                let mut text = table(&found);
                if !found.is_empty() {
                    let (shown, total) = (found.len(), letters.count(&filter).await?);
                    text += &match i64::try_from(shown) {
                        Ok(shown) if shown < total => {
                            format!("(the oldest {shown} of {total}; --limit shows more)\n")
                        }
                        _ => format!("({shown} in total)\n"),
                    };
                }
                print(&text)
            }
            Action::Show { which, event_id, payload, original } => {
                show(&which, &event_id, payload, original).await
            }
            Action::Retry { which, chosen, pace } => change::retry(which, chosen, pace).await,
            Action::Discard { which, chosen } => change::discard(which, chosen).await,
            Action::Restore { which, chosen } => change::restore(which, chosen).await,
            Action::Edit { which, chosen, content } => change::edit(which, chosen, content).await,
        }
    }
}

async fn show(which: &Which, event_id: &String, payload: bool, original: bool) -> Done {
    let letters = which.letters().await?;
    let mut found = Vec::new();
    for state in [None, Some(LetterState::Discarded), Some(LetterState::Retried)] {
        if found.is_empty() {
            found = letters.list(&which.filter(Some(event_id), state), 100).await?;
        }
    }
    if found.is_empty() {
        return Err(format!("no dead letter {event_id}").into());
    }
    match found.as_slice() {
        [letter] if original => match letters.original(letter).await? {
            Some((_, payload)) => print(&payload),
            None => Err(format!("dead letter {event_id} was not edited").into()),
        },
        [letter] if payload => {
            let (letters_, state) = (Some(vec![letter.letter]), Some(letter.state));
            let filter = Filter { letters: letters_, state, ..Filter::default() };
            let whole = letters.first(&filter).await?;
            print(&whole.unwrap_or_else(|| letter.clone()).payload)
        }
        _ if payload => Err(ambiguous(event_id, &found).into()),
        _ => {
            let mut text = String::new();
            for letter in &found {
                text += &whole(letter);
                text += &letters.history(letter).await?;
            }
            print(&text)
        }
    }
}

impl Letters {
    async fn original(
        &self,
        letter: &LetterView,
    ) -> Result<Option<(std::collections::BTreeMap<String, String>, bytes::Bytes)>, Failed> {
        let original = self.letters.original(letter.letter);
        self.limit.ask("show what the letter was", original).await
    }

    /// What operators have done to a letter, and what it was before that.
    async fn history(&self, letter: &LetterView) -> Result<String, Failed> {
        let mut lines = Vec::new();
        if let Some((headers, payload)) = self.original(letter).await? {
            let what = "bytes (--payload --original writes it out)";
            lines.push(("original", format!("{} {what}", payload.len())));
            let changed =
                headers.iter().filter(|(name, value)| letter.headers.get(*name) != Some(*value));
            lines.extend(changed.map(|(name, value)| ("original", format!("{name}: {value}"))));
        }
        let kind = match self.side {
            Side::Outbox => "outbox-letters",
            Side::Inbox => "inbox-letters",
        };
        let mut filter = ActionFilter::default();
        (filter.what, filter.letter) = (Some(kind.to_owned()), Some(letter.letter));
        let actions = Actions::new(self.pool.clone(), &self.schema)?;
        let found = self.limit.ask("list what was done", actions.list(&filter, 20)).await?;
        lines.extend(found.iter().map(|action| {
            let note = action.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
            let verb = action.what.rsplit('.').next().unwrap_or_default();
            ("action", format!("{} {verb} by {} ({}){note}", action.at, action.who, action.role))
        }));
        Ok(lines.iter().map(|(name, value)| format!("{name:<8}  {}\n", harmless(value))).collect())
    }
}

fn state(text: &str) -> Result<LetterState, String> {
    LetterState::read(text)
        .map_err(|_| "a state must be dead, parked, discarded or retried".to_owned())
}

/// The values of a flag that match something, at most ten.
fn known(flag: &str, groups: &Groups) -> Vec<String> {
    let of = |group: &pillarbox_store::dead_letters::Group| match flag {
        "--owner" => Some(group.owner.clone()),
        "--type" => group.event_type.clone(),
        "--reason" => Some(group.reason.clone()),
        "--group" => Some(group.group.clone()),
        _ => None,
    };
    let values: std::collections::BTreeSet<String> = groups.groups.iter().filter_map(of).collect();
    values.into_iter().take(10).collect()
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Outbox => "outbox",
        Side::Inbox => "inbox",
    }
}

/// The error text for an event id that several dead letters have.
fn ambiguous(event_id: &str, found: &[LetterView]) -> String {
    let list: Vec<String> = found
        .iter()
        .map(|letter| {
            let position = letter.position.unwrap_or_default();
            let source =
                letter.source().map_or("no source".into(), |source| format!("source {source}"));
            format!("position {position} ({}, {source})", letter.owner)
        })
        .collect();
    harmless(&format!(
        "several dead letters have the id {event_id}: {}; choose one with --position, or with --owner and --source",
        list.join(", ")
    ))
}

fn table(letters: &[LetterView]) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = format!(
        "{:<36}  {:<16}  {:<24}  {:<24}  {:<12}  {:<6}  {:>8}  error\n",
        "event id", "owner", "type", "topic", "reason", "state", "age"
    );
    for letter in letters {
        let line = format!(
            "{:<36}  {:<16}  {:<24}  {:<24}  {:<12}  {:<6}  {:>8}  {}",
            letter.event_id,
            letter.owner,
            letter.event_type.as_deref().unwrap_or("(no event)"),
            letter.topic,
            letter.reason,
            letter.state,
            age(letter.age_seconds),
            brief(&letter.error, ERROR),
        );
        text += &harmless(&line);
        text.push('\n');
    }
    text
}

fn whole(letter: &LetterView) -> String {
    let position = letter.position.map(|position| position.to_string());
    let mut lines = vec![
        ("event id", letter.event_id.clone()),
        ("type", letter.event_type.clone().unwrap_or("none: the message is not an event".into())),
        ("topic", letter.topic.clone()),
        ("key", letter.key.clone().unwrap_or("none".into())),
        ("owner", letter.owner.clone()),
        ("state", letter.state.to_string()),
        ("reason", letter.reason.clone()),
        ("error", letter.error.clone()),
        ("attempts", letter.attempts.to_string()),
        ("edited", letter.edited_at.clone().unwrap_or("no".into())),
        ("age", age(letter.age_seconds)),
        ("payload", format!("{} bytes (--payload writes it out)", letter.payload_bytes)),
    ];
    if let Some(position) = position {
        lines.insert(5, ("position", position));
    }
    if !letter.whole {
        lines.push(("kept", "only part of the event: it cannot be retried".to_owned()));
    }
    lines.push(("letter", letter.letter.to_string()));
    lines.extend(letter.headers.iter().map(|(name, value)| ("header", format!("{name}: {value}"))));
    lines.iter().map(|(name, value)| format!("{name:<8}  {}\n", harmless(value))).collect()
}
