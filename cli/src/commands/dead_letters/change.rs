//! `pillarbox dead-letters retry`, `discard`, `restore` and `edit`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use pillarbox_store::Operator;
use pillarbox_store::consumers::Consumers;
use pillarbox_store::dead_letters::{
    Changed, Edit, Filter, LetterState, LetterView, PayloadEdit, RetryOutcome, Side,
};

use super::{Chosen, Failed, Letters, Which, ambiguous, table};
use crate::commands::ages::seconds;
use crate::commands::confirm::confirm;
use crate::commands::limit::Unanswered;
use crate::commands::{Done, print};
use crate::terminal::harmless;

/// How many dead letters are loaded and changed at a time, with their payloads.
const PAGE: usize = 50;
/// How many dead letters `--dry-run` shows.
const SHOWN: i64 = 20;
/// More dead letters than this are changed only after a question.
const MANY: usize = 20;
/// How often `--wait` looks what became of the letters.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// How a retry goes on.
#[derive(Debug, Args)]
pub(super) struct Pace {
    /// Retry at most this many per second: `20` or `20/s`.
    #[arg(long, value_name = "LETTERS_PER_SECOND", value_parser = per_second)]
    rate: Option<NonZeroU32>,
    /// Wait until they are shipped or handled, or have failed again, and say which. At most this long: `--wait` is
    /// 60 s, `--wait=5m` is five minutes. The command fails if any has failed again or still waits.
    #[arg(
        long,
        value_name = "AGE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "60s",
        value_parser = seconds
    )]
    wait: Option<i64>,
}

/// What an edit changes.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Content {
    /// Replace the payload with the content of this file; `-` is standard input. For one letter only.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "merge"])]
    payload: Option<PathBuf>,
    /// Change members of a JSON payload: apply this file as a JSON merge patch (RFC 7396); `-` is standard input.
    /// Members that the patch does not name stay as they are, and `null` removes one.
    #[arg(long, value_name = "FILE")]
    merge: Option<PathBuf>,
    /// Set headers: a file with a JSON object of strings; `-` is standard input. `null` removes a header, and the other
    /// headers stay.
    #[arg(long, value_name = "FILE")]
    headers: Option<PathBuf>,
}

fn per_second(text: &str) -> Result<NonZeroU32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().map_err(|_| "a rate must be a number above 0, such as 20 or 20/s".to_owned())
}

/// What is done to the chosen letters.
struct Doing {
    verb: &'static str,
    done: &'static str,
    /// The state that the letters must have. `None`: unresolved.
    state: Option<LetterState>,
    rate: Option<NonZeroU32>,
}

pub(super) async fn retry(which: Which, chosen: Chosen, pace: Pace) -> Done {
    let letters = which.letters().await?;
    let operator = chosen.signature.operator();
    let (dead, rate) = (Some(LetterState::Dead), pace.rate);
    let doing = Doing { verb: "retry", done: "retried", state: dead, rate };
    let act = async |page: &[LetterView]| letters.retry(page, &operator).await;
    let done = each(&letters, &which, &chosen, &doing, act).await?;
    letters.say_who_is_missing(&done.owners).await?;
    let waited = match pace.wait {
        Some(longest) if !done.letters.is_empty() => {
            wait(&letters, &done.letters, Duration::from_secs(longest.unsigned_abs())).await
        }
        _ => Ok(()),
    };
    // What could not be retried is said first.
    done.result?;
    waited
}

pub(super) async fn discard(which: Which, chosen: Chosen) -> Done {
    let letters = which.letters().await?;
    let operator = chosen.signature.operator();
    let doing = Doing { verb: "discard", done: "discarded", state: None, rate: None };
    let act = async |page: &[LetterView]| letters.discard(page, &operator).await;
    each(&letters, &which, &chosen, &doing, act).await?.result
}

pub(super) async fn restore(which: Which, chosen: Chosen) -> Done {
    let letters = which.letters().await?;
    let operator = chosen.signature.operator();
    let state = Some(LetterState::Discarded);
    let doing = Doing { verb: "restore", done: "restored", state, rate: None };
    let act = async |page: &[LetterView]| letters.restore(page, &operator).await;
    each(&letters, &which, &chosen, &doing, act).await?.result
}

pub(super) async fn edit(which: Which, chosen: Chosen, content: Content) -> Done {
    let edit = content.read()?;
    let letters = which.letters().await?;
    let operator = chosen.signature.operator();
    let state = Some(LetterState::Dead);
    let doing = Doing { verb: "edit", done: "edited", state, rate: None };
    let act = async |page: &[LetterView]| letters.edit(page, &edit, &operator).await;
    each(&letters, &which, &chosen, &doing, act).await?.result
}

impl Content {
    fn read(&self) -> Result<Edit, Failed> {
        let files = [&self.payload, &self.merge, &self.headers];
        let from_input = |file: &&PathBuf| file.as_os_str() == "-";
        if files.into_iter().flatten().filter(from_input).count() > 1 {
            return Err("only one of the contents can come from standard input".into());
        }
        let payload = match (&self.payload, &self.merge) {
            (Some(file), _) => PayloadEdit::Replace(bytes(file)?.into()),
            (None, Some(file)) => PayloadEdit::Merge(text(file)?),
            (None, None) => PayloadEdit::Keep,
        };
        let headers: BTreeMap<String, Option<String>> = match &self.headers {
            Some(file) => serde_json::from_str(&text(file)?).map_err(|error| {
                format!(
                    "{} must hold a JSON object of strings, such as {{\"tenant\": \"acme\"}}: {error}",
                    file.display()
                )
            })?,
            None => BTreeMap::new(),
        };
        let mut edit = Edit::default();
        (edit.payload, edit.headers) = (payload, headers);
        Ok(edit)
    }
}

fn bytes(file: &PathBuf) -> Result<Vec<u8>, Failed> {
    let mut content = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut content)?;
        return Ok(content);
    }
    std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()).into())
}

fn text(file: &PathBuf) -> Result<String, Failed> {
    String::from_utf8(bytes(file)?).map_err(|_| format!("{} is not UTF-8", file.display()).into())
}

/// What was done.
struct Did {
    /// The numbers of the letters that were changed.
    letters: Vec<i64>,
    /// The relays or consumers of these letters.
    owners: BTreeSet<String>,
    /// Whether all went well.
    result: Done,
}

/// Applies `act` to the chosen dead letters, page by page, and prints how many it was applied to. After a failure it
/// continues with the others. If the database does not answer, it stops at once.
async fn each(
    letters: &Letters,
    which: &Which,
    chosen: &Chosen,
    doing: &Doing,
    act: impl AsyncFn(&[LetterView]) -> Result<(Changed, Vec<String>), Failed>,
) -> Result<Did, Failed> {
    let numbers = choose(letters, which, chosen, doing).await?;
    let none = || Did { letters: Vec::new(), owners: BTreeSet::new(), result: Ok(()) };
    if chosen.dry_run {
        let shown = numbers.len().min(MANY);
        let first = letters.list(&these(&numbers[..shown], doing), SHOWN).await?;
        let count = numbers.len();
        let more = if count > shown { format!("(the first {shown})\n") } else { String::new() };
        print(&format!(
            "{}{more}{count} would be {}; nothing was done\n",
            table(&first),
            doing.done
        ))?;
        return Ok(none());
    }
    if numbers.len() > MANY && !chosen.yes {
        let what = format!("This will {} {} dead letters.", doing.verb, numbers.len());
        confirm(&what, doing.verb, doing.done)?;
    }
    let mut did = none();
    let (mut failed, mut seen) = (0, 0);
    let (began, mut shown) = (Instant::now(), Instant::now());
    for page in numbers.chunks(page_of(doing.rate)) {
        let page_of_letters = letters.list(&these(page, doing), i64::MAX).await?;
        match act(&page_of_letters).await {
            Ok((changed, refused)) => {
                failed += refused.len();
                for error in refused {
                    eprintln!("pillarbox: {}", harmless(&error));
                }
                let changed_one = |letter: &&LetterView| changed.letters.contains(&letter.letter);
                let owners = page_of_letters.iter().filter(changed_one);
                did.owners.extend(owners.map(|letter| letter.owner.clone()));
                did.letters.extend(changed.letters);
            }
            Err(error) if error.is::<Unanswered>() => {
                eprintln!("{} {} before that", did.letters.len(), doing.done);
                return Err(error);
            }
            Err(error) => {
                failed += page_of_letters.len();
                eprintln!("pillarbox: {}", harmless(&pillarbox_store::full_text(&*error)));
            }
        }
        seen += page.len();
        if seen < numbers.len() && shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            eprintln!("{} {} so far, of {}", did.letters.len(), doing.done, numbers.len());
        }
        if let Some(rate) = doing.rate.filter(|_| seen < numbers.len()) {
            let due = Duration::from_secs_f64(seen as f64 / f64::from(rate.get()));
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
    }
    print(&format!("{} {}\n", did.letters.len(), doing.done))?;
    did.result = match (failed, did.letters.len(), &chosen.event_id) {
        (0, 0, Some(event_id)) => {
            Err(format!("no dead letter {event_id} could be {}", doing.done).into())
        }
        (0, ..) => Ok(()),
        (failed, ..) => Err(format!("{failed} failed").into()),
    };
    Ok(did)
}

/// The numbers of the chosen letters. They are chosen once: a letter that fails again meanwhile is not touched a second
/// time.
async fn choose(
    letters: &Letters,
    which: &Which,
    chosen: &Chosen,
    doing: &Doing,
) -> Result<Vec<i64>, Failed> {
    let filter = which.filter(chosen.event_id.as_ref(), doing.state);
    if let Some(event_id) = &chosen.event_id {
        let mut found = letters.list(&filter, SHOWN).await?;
        found.sort_by(|one, other| one.owner.cmp(&other.owner));
        let of_one = |pair: &[LetterView]| pair[0].owner == pair[1].owner;
        if found.windows(2).any(of_one) {
            return Err(ambiguous(event_id, &found).into());
        }
    }
    let numbers = letters.numbers(&filter, chosen.limit.unwrap_or(i64::MAX)).await?;
    if numbers.is_empty() {
        letters.say_unknown(&which.only).await?;
    }
    Ok(numbers)
}

fn these(numbers: &[i64], doing: &Doing) -> Filter {
    Filter { letters: Some(numbers.to_vec()), state: doing.state, ..Filter::default() }
}

/// How many letters are changed in one transaction: with a rate, about a quarter of a second's.
fn page_of(rate: Option<NonZeroU32>) -> usize {
    rate.map_or(PAGE, |rate| (rate.get() as usize / 4).clamp(1, PAGE))
}

/// Waits until the letters have left the state `parked`, and says what became of them.
async fn wait(letters: &Letters, numbers: &[i64], longest: Duration) -> Done {
    let (began, mut shown) = (Instant::now(), Instant::now());
    let outcome = loop {
        let outcome = letters.outcome(numbers).await?;
        if outcome.waiting == 0 || began.elapsed() >= longest {
            break outcome;
        }
        if shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            eprintln!("{} so far", said(letters.side, &outcome));
        }
        tokio::time::sleep(LOOK_EVERY.min(longest.saturating_sub(began.elapsed()))).await;
    };
    print(&(said(letters.side, &outcome) + "\n"))?;
    match (outcome.failed_again, outcome.waiting) {
        (0, 0) => Ok(()),
        (0, waiting) => Err(format!("{waiting} still wait after {} s", longest.as_secs()).into()),
        (failed, _) => Err(format!("{failed} failed again").into()),
    }
}

fn said(side: Side, outcome: &RetryOutcome) -> String {
    let done = match side {
        Side::Outbox => "shipped",
        Side::Inbox => "handled",
    };
    let mut text = format!(
        "{} {done}, {} failed again, {} still waiting",
        outcome.done, outcome.failed_again, outcome.waiting
    );
    if outcome.discarded > 0 {
        text += &format!(", {} discarded", outcome.discarded);
    }
    text
}

impl Letters {
    async fn retry(
        &self,
        page: &[LetterView],
        operator: &Operator,
    ) -> Result<(Changed, Vec<String>), Failed> {
        let retried = self.letters.retry(page, operator);
        with_texts(self.limit.ask("have dead letters retried", retried).await?)
    }

    async fn discard(
        &self,
        page: &[LetterView],
        operator: &Operator,
    ) -> Result<(Changed, Vec<String>), Failed> {
        let discarded = self.letters.discard(page, operator);
        with_texts(self.limit.ask("discard dead letters", discarded).await?)
    }

    async fn restore(
        &self,
        page: &[LetterView],
        operator: &Operator,
    ) -> Result<(Changed, Vec<String>), Failed> {
        let restored = self.letters.restore(page, operator);
        with_texts(self.limit.ask("restore dead letters", restored).await?)
    }

    async fn edit(
        &self,
        page: &[LetterView],
        edit: &Edit,
        operator: &Operator,
    ) -> Result<(Changed, Vec<String>), Failed> {
        let (mut changed, mut refused) = (Changed::default(), Vec::new());
        for letter in page {
            let one = Filter { letters: Some(vec![letter.letter]), ..Filter::default() };
            let Some(letter) = self.first(&one).await? else { continue };
            let edited = self.letters.edit(&letter, edit, operator);
            match self.limit.ask("edit a dead letter", edited).await {
                Ok(()) => changed.letters.push(letter.letter),
                Err(error) if error.is::<Unanswered>() => return Err(error),
                Err(error) => refused.push(pillarbox_store::full_text(&*error)),
            }
        }
        Ok((changed, refused))
    }

    async fn outcome(&self, numbers: &[i64]) -> Result<RetryOutcome, Failed> {
        let outcome = self.letters.outcome(numbers);
        self.limit.ask("say what became of the dead letters", outcome).await
    }

    /// Says which of these consumers have no process that would handle their letters.
    async fn say_who_is_missing(&self, owners: &BTreeSet<String>) -> Done {
        if self.side == Side::Outbox {
            return Ok(());
        }
        let consumers = Consumers::new(self.pool.clone(), &self.schema)?;
        for owner in owners {
            let found = self.limit.ask("look for its processes", consumers.find(owner)).await?;
            let said = match found {
                Some(found) if found.processes == 0 => format!(
                    "no process of consumer {owner} was seen in the last half minute; its letters wait until one runs"
                ),
                Some(found) if found.pauses.iter().any(|pause| pause.event_type.is_none()) => {
                    format!(
                        "consumer {owner} is paused; its letters wait until it is resumed (pillarbox consumers resume {owner})"
                    )
                }
                _ => continue,
            };
            eprintln!("pillarbox: {}", harmless(&said));
        }
        Ok(())
    }
}

fn with_texts(changed: Changed) -> Result<(Changed, Vec<String>), Failed> {
    let refused = changed.refused.iter().map(|error| pillarbox_store::full_text(error)).collect();
    Ok((changed, refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_per_second() {
        for text in ["20", "20/s"] {
            assert_eq!(per_second(text).unwrap().get(), 20, "{text}");
        }
        for text in ["", "0", "0/s", "-1", "1.5", "20/m", "/s"] {
            assert!(per_second(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_slow_rate_changes_few_letters_at_a_time() {
        let pages = [1, 4, 40, 1_000].map(|rate| page_of(NonZeroU32::new(rate)));
        assert_eq!(pages, [1, 1, 10, PAGE]);
        assert_eq!(page_of(None), PAGE);
    }
}
