//! A flow as a tree of lines, for a terminal or a page. Characters that act are shown by their number.

use pillarbox_store::shown::{age, harmless};
use time::OffsetDateTime;

use super::times::{moment, span};
use super::{Asked, Flow, FlowEvent, Handled, Outcome, SagaStep, Waits};

/// The deepest level that is drawn; what lies deeper is drawn at this level.
const DEEPEST: usize = 40;
/// The longest error that is shown, in characters.
const ERROR: usize = 300;

/// A line below an event, or another event.
enum Below {
    Line(Option<OffsetDateTime>, String),
    Event(Option<OffsetDateTime>, usize),
}

impl Below {
    fn at(&self) -> Option<OffsetDateTime> {
        match self {
            Self::Line(at, _) | Self::Event(at, _) => *at,
        }
    }
}

/// What to say of a flow of which nothing is known, in one line.
pub fn nothing(flow: &Flow) -> String {
    let what = match &flow.asked {
        Asked::Event(id) => format!("event {id:?}"),
        Asked::Key(key) => format!("key {key:?}"),
        Asked::Correlation(id) => format!("correlation id {id:?}"),
    };
    let mut text = format!(
        "nothing is known of {what}: it is not in the trail (which keeps 3 days by default, and knows what was in the \
         streams while it ran), and waits in no outbox that this command looked into"
    );
    for note in &flow.notes {
        text += &format!("; {note}");
    }
    text
}

/// The flow as a tree, and what is stuck.
pub fn tree(flow: &Flow) -> String {
    let mut text = String::new();
    let roots: Vec<usize> = flow.roots().collect();
    for root in roots {
        branch(flow, root, &mut text);
    }
    text += &summary(flow);
    text
}

/// What is still to be drawn.
enum Work {
    /// A line, with what stands before it.
    Line(String, String),
    /// An event, with what stands before its line and before the lines below it.
    Event(usize, String, String),
}

/// Draws an event with everything below it. It does not recurse, because a flow may be deep.
fn branch(flow: &Flow, root: usize, text: &mut String) {
    let mut stack = vec![Work::Event(root, String::new(), String::new())];
    while let Some(work) = stack.pop() {
        let (at, first, rest) = match work {
            Work::Line(before, line) => {
                push(text, &before, &line);
                continue;
            }
            Work::Event(at, first, rest) => (at, first, rest),
        };
        let Some(event) = flow.events.get(at) else { continue };
        push(text, &first, &headline(flow, event));
        let items = below(flow, at, event);
        let count = items.len();
        for (number, item) in items.into_iter().enumerate().rev() {
            let (branch, trunk) = match number + 1 == count {
                true => ("└─ ", "   "),
                false => ("├─ ", "│  "),
            };
            let (branch, trunk) =
                if event.depth < DEEPEST { (branch, trunk) } else { ("→ ", "") };
            let first = format!("{rest}{branch}");
            stack.push(match item {
                Below::Line(_, line) => Work::Line(first, line),
                Below::Event(_, child) => Work::Event(child, first, format!("{rest}{trunk}")),
            });
        }
    }
}

fn push(text: &mut String, before: &str, line: &str) {
    text.push_str(before);
    text.push_str(&harmless(line));
    text.push('\n');
}

fn headline(flow: &Flow, event: &FlowEvent) -> String {
    let mut line = match &event.event_type {
        Some(name) => format!("{name}  {}", event.id),
        None => format!("{}  (only named as a cause)", event.id),
    };
    if let Some(key) = &event.key {
        line += &format!("  key {key}");
    }
    let parent = event.parent.and_then(|parent| flow.events.get(parent));
    match (event.began(), parent.and_then(FlowEvent::began)) {
        (Some(began), Some(before)) => {
            line += &format!("  {} ({})", moment(began), hop(before, began));
        }
        (Some(began), None) => line += &format!("  {}", moment(began)),
        (None, _) => {}
    }
    if let Some(name) = &event.timer {
        line += &format!("  timer {name}");
    }
    if event.compensates {
        line += "  compensation";
    }
    if let Some(first) = event.stored.first() {
        line += &format!("  {}:{}", first.stream, first.sequence);
    }
    line
}

/// What stands below an event: what became of it and what it caused, in the order of time; what is open comes last.
fn below(flow: &Flow, at: usize, event: &FlowEvent) -> Vec<Below> {
    let mut items = Vec::new();
    if event.parent.is_none()
        && let Some(cause) = &event.causation
    {
        items.push(Below::Line(None, format!("caused by {cause}, which is not in the trail")));
    }
    for again in event.stored.iter().skip(1) {
        let text = format!("sent again {}  {}:{}", moment(again.at), again.stream, again.sequence);
        items.push(Below::Line(Some(again.at), text));
    }
    if let Some(waits) = &event.waits {
        items.push(Below::Line(None, waiting(waits, flow.now)));
    }
    let since = event.stored.first().map(|stored| stored.at).or(event.began());
    items.extend(event.handled.iter().filter_map(|handled| match handled.outcome {
        Outcome::Done { at } => Some(Below::Line(Some(at), outcome(handled, since, flow.now))),
        _ => None,
    }));
    items.extend(event.sagas.iter().map(|step| Below::Line(Some(step.at), saga(step))));
    items.extend(flow.children(at).map(|child| Below::Event(flow.events[child].began(), child)));
    items.sort_by_key(Below::at);
    items.extend(event.handled.iter().filter_map(|handled| match handled.outcome {
        Outcome::Done { .. } => None,
        _ => Some(Below::Line(None, outcome(handled, since, flow.now))),
    }));
    items
}

fn who(handled: &Handled) -> String {
    format!("{} ({})", handled.consumer, handled.part)
}

fn outcome(handled: &Handled, stored: Option<OffsetDateTime>, now: OffsetDateTime) -> String {
    let who = who(handled);
    match &handled.outcome {
        Outcome::Done { at } => {
            let after = stored.map_or_else(String::new, |stored| format!(", {}", hop(stored, *at)));
            format!("handled by {who} {}{after}", moment(*at))
        }
        Outcome::Retrying { since, last, attempts, outages, error } => {
            let tried = match (attempts, outages) {
                (0, _) => format!("a provider was away {outages} times"),
                (1, 0) => "1 attempt failed".to_owned(),
                (attempts, 0) => format!("{attempts} attempts failed"),
                (attempts, outages) => {
                    format!("{attempts} attempts failed, and a provider was away {outages} times")
                }
            };
            format!(
                "not handled by {who} yet: in retry since {} ({}), {tried}, the last one {} ago: {}",
                moment(*since),
                ago(*since, now),
                ago(*last, now),
                short(error)
            )
        }
        Outcome::Dead { state, since, reason, error } => {
            let what = match state.as_str() {
                "parked" => "waits parked",
                "discarded" => "was discarded",
                _ => "is a dead letter",
            };
            format!(
                "not handled by {who}: it {what} since {} ({}), {reason}: {}",
                moment(*since),
                ago(*since, now),
                short(error)
            )
        }
        Outcome::Missing { since } => format!(
            "not handled by {who} yet, which handled others of this type: it has waited since {} ({})",
            moment(*since),
            ago(*since, now)
        ),
    }
}

fn waiting(waits: &Waits, now: OffsetDateTime) -> String {
    match waits {
        Waits::Outbox { part, since } => format!(
            "waits in the outbox of {part} since {} ({}), and is not in the trail yet",
            moment(*since),
            ago(*since, now)
        ),
        Waits::Scheduled { part, due, error } => {
            let trouble = error.as_ref().map_or_else(String::new, |error| {
                format!("; it could not be released: {}", short(error))
            });
            let when = match *due > now {
                true => format!("in {}", ago(now, *due)),
                false => format!("since {}", ago(*due, now)),
            };
            format!("scheduled in {part}, due {} ({when}){trouble}", moment(*due))
        }
        Waits::DeadLetter { part, relay, state, since, reason, error } => format!(
            "not shipped by relay {relay} of {part}: {state} since {} ({}), {reason}: {}",
            moment(*since),
            ago(*since, now),
            short(error)
        ),
    }
}

fn saga(step: &SagaStep) -> String {
    let mut line = format!(
        "saga {} {} ({}) {}: {} → {}, {}",
        step.saga,
        step.id,
        step.part,
        moment(step.at),
        step.before,
        step.after,
        step.status
    );
    let set: Vec<_> = step.timers_set.iter().map(|(name, _)| name.as_str()).collect();
    for (what, names) in
        [("timers set", set.join(", ")), ("timers cancelled", step.timers_cancelled.join(", "))]
    {
        if !names.is_empty() {
            line += &format!("; {what}: {names}");
        }
    }
    if let Some(note) = &step.note {
        line += &format!("; {}", short(note));
    }
    line
}

/// How much there is, and what is open.
fn summary(flow: &Flow) -> String {
    let count = flow.events.len();
    let mut text = format!("\n{count} event{}", if count == 1 { "" } else { "s" });
    if let (Some(first), Some(last)) = (
        flow.events.iter().filter_map(FlowEvent::began).min(),
        flow.events.iter().flat_map(times).max(),
    ) {
        text += &format!(" in {}", span(first, last));
    }
    let mut open = Vec::new();
    for event in flow.open().filter_map(|at| flow.events.get(at)) {
        let name = event.event_type.as_deref().unwrap_or("an event");
        let at = |text: String| format!("  {name} {}: {text}", event.id);
        let waits = event.waits.as_ref().filter(|waits| waits.is_open());
        open.extend(waits.map(|waits| at(waiting(waits, flow.now))));
        let unhandled = event.handled.iter().filter(|handled| handled.outcome.is_open());
        open.extend(unhandled.map(|handled| at(outcome(handled, None, flow.now))));
    }
    if open.is_empty() {
        text += "; nothing is open\n";
    } else {
        text += &format!("; {} open:\n", open.len());
        for line in open {
            push(&mut text, "", &line);
        }
    }
    if flow.truncated {
        text += "There is more than was asked for: raise --limit, or ask for one event's id.\n";
    }
    for note in &flow.notes {
        push(&mut text, "Note: ", note);
    }
    text
}

/// Every time that something happened to an event.
fn times(event: &FlowEvent) -> Vec<OffsetDateTime> {
    let handled = event.handled.iter().filter_map(|handled| match handled.outcome {
        Outcome::Done { at } => Some(at),
        _ => None,
    });
    event.stored.iter().map(|stored| stored.at).chain(handled).chain(event.began()).collect()
}

fn short(error: &str) -> String {
    match error.char_indices().nth(ERROR) {
        Some((end, _)) => format!("{}…", &error[..end]),
        None => error.to_owned(),
    }
}

fn hop(from: OffsetDateTime, to: OffsetDateTime) -> String {
    match to >= from {
        true => format!("{} later", span(from, to)),
        false => format!("{} earlier by its clock", span(to, from)),
    }
}

fn ago(since: OffsetDateTime, now: OffsetDateTime) -> String {
    age((now - since).as_seconds_f64().max(0.0))
}
