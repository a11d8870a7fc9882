//! A flow as a picture: an SVG with a lane for each service, time from top to bottom, and an arrow for each event, from
//! who published it to who handled it.
//!
//! Everything that comes from events is escaped, and characters that act are shown by their number. There is no script,
//! no link and no reference to anything outside, and no style attribute, so the strictest content security policy lets
//! it through. Neutral parts have the colour of the text around the picture; the elements have classes, for a page's
//! style sheet.
//!
//! Who published an event is not recorded. It is taken to be the consumer that handled the event's cause last before
//! the event was written, or else the event's source.

use std::collections::BTreeMap;
use std::fmt::Write;

use pillarbox_store::shown::acts;
use time::OffsetDateTime;

use super::times::{clock, moment, span};
use super::{Flow, FlowEvent, Handled, Outcome, Waits};

/// The most events that are drawn. A note in the picture says if there are more.
pub const MOST: usize = 200;
/// The most lanes. Further services share the last one.
const LANES: usize = 12;

const LEFT: usize = 110;
const LANE: usize = 190;
/// Room for a label behind the last lane.
const RIGHT: usize = 140;
const TOP: usize = 64;
const ROW: usize = 26;
const GAP: usize = 18;
/// The most characters of a label.
const LABEL: usize = 26;

/// An arrow, from one lane to another.
struct Arrow {
    to: usize,
    class: &'static str,
    colour: &'static str,
    dashes: &'static str,
    /// What stands at its head.
    mark: &'static str,
    label: String,
    title: String,
}

/// The flow as an SVG document, in UTF-8.
pub fn svg(flow: &Flow) -> String {
    let mut order: Vec<usize> = (0..flow.events.len()).collect();
    order.sort_by_key(|at| {
        let began = flow.events[*at].began();
        (began.is_none(), began, *at)
    });
    let left_out = order.len().saturating_sub(MOST);
    order.truncate(MOST);
    let mut lanes = Lanes::default();
    let from: BTreeMap<usize, usize> =
        order.iter().map(|at| (*at, lanes.number(&publisher(flow, *at)))).collect();
    let mut body = String::new();
    let mut y = TOP;
    for at in &order {
        let event = &flow.events[*at];
        let from = from.get(at).copied().unwrap_or(0);
        y = draw(&mut body, flow, event, from, &mut lanes, y);
    }
    if left_out > 0 {
        text(&mut body, "note", 8, y + ROW, &format!("{left_out} later events are not drawn"));
        y += ROW;
    }
    if flow.events.is_empty() {
        text(&mut body, "note", 8, y + ROW, "nothing is known of this flow");
        y += ROW;
    }
    let (width, height) = (LEFT + LANE * lanes.names.len().max(1) + RIGHT, y + ROW);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"flow\" role=\"img\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" \
         fill=\"currentColor\"><title>{}</title>\n",
        escaped(&summary(flow))
    );
    lanes.draw(&mut svg, height);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

/// The lanes, in the order in which they are needed.
#[derive(Default)]
struct Lanes {
    names: Vec<String>,
}

impl Lanes {
    fn number(&mut self, name: &str) -> usize {
        if let Some(found) = self.names.iter().position(|known| known == name) {
            return found;
        }
        if self.names.len() >= LANES {
            if let Some(last) = self.names.last_mut() {
                *last = "other services".to_owned();
            }
            return LANES - 1;
        }
        self.names.push(name.to_owned());
        self.names.len() - 1
    }

    fn x(number: usize) -> usize {
        LEFT + LANE / 2 + LANE * number
    }

    fn draw(&self, svg: &mut String, height: usize) {
        for (number, name) in self.names.iter().enumerate() {
            let x = Self::x(number);
            let _ = writeln!(
                svg,
                "<g class=\"lane\"><line x1=\"{x}\" y1=\"34\" x2=\"{x}\" y2=\"{}\" stroke=\"currentColor\" \
                 stroke-opacity=\"0.25\"/><text x=\"{x}\" y=\"22\" text-anchor=\"middle\" font-weight=\"600\">{}\
                 <title>{}</title></text></g>",
                height - 8,
                escaped(&cut(name)),
                escaped(name)
            );
        }
    }
}

/// The name of the lane from which an event comes.
fn publisher(flow: &Flow, at: usize) -> String {
    let event = &flow.events[at];
    let parent = event.parent.and_then(|parent| flow.events.get(parent));
    // By the clock of its service's database, as far as that is known: the cause was handled there.
    let began = event.written.or(event.began());
    let by = parent.and_then(|parent| {
        let done = parent.handled.iter().filter_map(|handled| match handled.outcome {
            Outcome::Done { at } if began.is_none_or(|began| at <= began) => Some((at, handled)),
            _ => None,
        });
        done.max_by_key(|(at, _)| *at).map(|(_, handled)| handled.consumer.clone())
    });
    by.unwrap_or_else(|| {
        let source = event.source.as_deref().unwrap_or("unknown source");
        let name = source.trim_start_matches('/');
        if name.is_empty() { source.to_owned() } else { name.to_owned() }
    })
}

/// Draws an event with its arrows, and returns where the next one begins.
fn draw(
    body: &mut String,
    flow: &Flow,
    event: &FlowEvent,
    from: usize,
    lanes: &mut Lanes,
    top: usize,
) -> usize {
    let name = event.event_type.as_deref().unwrap_or("named as a cause");
    let mut label = cut(name);
    if event.compensates {
        label = format!("↺ {label}");
    }
    if event.timer.is_some() {
        label = format!("◷ {label}");
    }
    if event.stored.len() > 1 {
        label += &format!(" ×{}", event.stored.len());
    }
    let class = match (event.is_open(), event.compensates) {
        (true, _) => "event open",
        (false, true) => "event compensation",
        (false, false) => "event",
    };
    let x = Lanes::x(from);
    let _ = writeln!(body, "<g class=\"{class}\"><title>{}</title>", escaped(&title(event)));
    if let Some(began) = event.began() {
        text(body, "time", 4, top + 4, &clock(began));
    }
    let _ = writeln!(
        body,
        "<circle cx=\"{x}\" cy=\"{top}\" r=\"4\"/>\
         <text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"600\">{}</text>",
        top - 8,
        escaped(&label)
    );
    let mut y = top;
    if let Some(waits) = &event.waits {
        y += ROW;
        let (label, colour) = waiting(waits, flow.now);
        let _ = writeln!(
            body,
            "<g class=\"waits\"><line x1=\"{x}\" y1=\"{top}\" x2=\"{x}\" y2=\"{y}\" stroke=\"{colour}\" \
             stroke-width=\"2\" stroke-dasharray=\"2 3\"/><text x=\"{}\" y=\"{}\" fill=\"{colour}\">{}</text></g>",
            x + 8,
            y + 4,
            escaped(&label)
        );
    }
    for handled in &event.handled {
        y += ROW;
        let arrow = arrow(flow, event, handled, lanes);
        draw_arrow(body, (x, top), y, &arrow);
    }
    body.push_str("</g>\n");
    y + ROW + GAP
}

fn draw_arrow(body: &mut String, (x, top): (usize, usize), y: usize, arrow: &Arrow) {
    let to = Lanes::x(arrow.to);
    let Arrow { class, colour, dashes, mark, .. } = arrow;
    // To its own lane, it goes out and comes back.
    let path = match to == x {
        true => format!("M{x} {top} C{} {top} {} {y} {x} {y}", x + 46, x + 46),
        false => format!("M{x} {top} L{to} {y}"),
    };
    let right = to >= x;
    let (label_x, anchor) = if right { (to + 10, "start") } else { (to - 10, "end") };
    let _ = writeln!(
        body,
        "<g class=\"{class}\"><title>{}</title><path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" \
         stroke-width=\"1.5\"{dashes}/><text x=\"{to}\" y=\"{}\" text-anchor=\"middle\" fill=\"{colour}\" \
         font-weight=\"600\">{mark}</text><text x=\"{label_x}\" y=\"{}\" text-anchor=\"{anchor}\" \
         fill=\"{colour}\">{}</text></g>",
        escaped(&arrow.title),
        y + 4,
        y + 4,
        escaped(&arrow.label)
    );
}

const DONE: &str = "currentColor";
/// These two are dark and light enough for both colour schemes.
const TROUBLE: &str = "#d1242f";
const WAITING: &str = "#b06f00";

fn arrow(flow: &Flow, event: &FlowEvent, handled: &Handled, lanes: &mut Lanes) -> Arrow {
    let to = lanes.number(&handled.consumer);
    let who = format!("{} ({})", handled.consumer, handled.part);
    let began = event.stored.first().map(|stored| stored.at).or(event.began());
    let dashed = " stroke-dasharray=\"6 4\"";
    let (class, colour, dashes, mark, label, title) = match &handled.outcome {
        Outcome::Done { at } => {
            let after = began.map_or_else(String::new, |began| span(began, *at));
            ("done", DONE, "", "●", after, format!("handled by {who} {}", moment(*at)))
        }
        Outcome::Retrying { since, attempts, error, .. } => (
            "retrying",
            WAITING,
            dashed,
            "↻",
            format!("in retry for {}", span(*since, flow.now)),
            format!("{who}: {attempts} attempts since {}: {error}", moment(*since)),
        ),
        Outcome::Dead { state, since, reason, error } => (
            "dead",
            if state == "discarded" { DONE } else { TROUBLE },
            "",
            "✕",
            format!("{state} for {}", span(*since, flow.now)),
            format!("{who}: {state} since {}, {reason}: {error}", moment(*since)),
        ),
        Outcome::Missing { since } => (
            "missing",
            WAITING,
            " stroke-dasharray=\"2 5\"",
            "○",
            format!("not yet, for {}", span(*since, flow.now)),
            format!("{who} handled others of this type; this one waits since {}", moment(*since)),
        ),
    };
    Arrow { to, class, colour, dashes, mark, label, title }
}

fn waiting(waits: &Waits, now: OffsetDateTime) -> (String, &'static str) {
    match waits {
        Waits::Outbox { since, .. } => {
            (format!("in the outbox for {}", span(*since, now)), WAITING)
        }
        Waits::Scheduled { due, error: None, .. } if *due > now => {
            (format!("◷ due in {}", span(now, *due)), DONE)
        }
        Waits::Scheduled { due, .. } => (format!("◷ due for {}", span(*due, now)), WAITING),
        Waits::DeadLetter { state, since, .. } => {
            (format!("✕ not shipped, {state} for {}", span(*since, now)), TROUBLE)
        }
    }
}

/// What is said of an event where the pointer rests on it.
fn title(event: &FlowEvent) -> String {
    let mut title = format!("{} {}", event.event_type.as_deref().unwrap_or("event"), event.id);
    if let Some(key) = &event.key {
        title += &format!("\nkey {key}");
    }
    if let Some(written) = event.written {
        title += &format!("\nwritten {}", moment(written));
    }
    for stored in &event.stored {
        title += &format!("\n{}:{} {}", stored.stream, stored.sequence, moment(stored.at));
    }
    if let Some(name) = &event.timer {
        title += &format!("\ntimer {name}");
    }
    if event.compensates {
        title += "\nundoes a step of a saga";
    }
    for step in &event.sagas {
        title += &format!("\nsaga {} {}: {} → {}", step.saga, step.id, step.before, step.after);
    }
    title
}

fn summary(flow: &Flow) -> String {
    let open = flow.open().count();
    format!("The flow of {}: {} events, {open} of them open", flow.asked.text(), flow.events.len())
}

fn text(body: &mut String, class: &str, x: usize, y: usize, said: &str) {
    let _ = writeln!(
        body,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" fill-opacity=\"0.75\">{}</text>",
        escaped(said)
    );
}

/// The beginning of a name that is too long for its place.
fn cut(name: &str) -> String {
    match name.char_indices().nth(LABEL) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

/// Text for XML. A character that acts on the layout, or that XML has not, is shown by its number. A line break is
/// kept.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' => escaped.push('\n'),
            c if acts(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(escaped, "&lt;U+{:04X}&gt;", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use time::Duration;

    use super::super::{Asked, SagaStep, Stored};
    use super::*;

    fn at(milliseconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(milliseconds)
    }

    fn event(id: &str, name: &str, parent: Option<usize>, began: i64) -> FlowEvent {
        let mut event = FlowEvent::named(id);
        event.event_type = Some(name.to_owned());
        event.source = Some("/shop".to_owned());
        event.parent = parent;
        event.written = Some(at(began));
        event.stored.push(Stored {
            stream: "ORDERS".into(),
            life: at(0),
            sequence: 7,
            at: at(began + 1),
            size: 1,
        });
        event
    }

    fn handled(consumer: &str, outcome: Outcome) -> Handled {
        Handled { part: "db".into(), consumer: consumer.into(), outcome }
    }

    fn flow(events: Vec<FlowEvent>) -> Flow {
        let asked = Asked::Key("42".into());
        Flow { asked, events, truncated: false, notes: Vec::new(), now: at(60_000) }
    }

    fn checkout() -> Flow {
        let mut placed = event("1", "order.placed", None, 1_000);
        placed.handled.push(handled("payments", Outcome::Done { at: at(1_012) }));
        let mut taken = event("2", "payment.taken", Some(0), 1_020);
        let (since, last) = (at(1_100), at(2_000));
        let error = "locked".to_owned();
        let retrying = Outcome::Retrying { since, last, attempts: 3, outages: 0, error };
        taken.handled.push(handled("ledger", retrying));
        taken.handled.push(handled("mails", Outcome::Missing { since: at(1_021) }));
        taken.stored.push(taken.stored[0].clone());
        let mut refunded = event("3", "payment.refunded", Some(1), 1_500);
        refunded.compensates = true;
        let (state, since, reason, error) =
            ("dead".to_owned(), at(1_600), "permanent".to_owned(), "no account".to_owned());
        refunded.handled.push(handled("payments", Outcome::Dead { state, since, reason, error }));
        let mut overdue = event("4", "payment.overdue", Some(0), 1_013);
        overdue.stored.clear();
        overdue.timer = Some("overdue".into());
        overdue.waits =
            Some(Waits::Scheduled { part: "db".into(), due: at(3_600_000), error: None });
        flow(vec![placed, taken, refunded, overdue])
    }

    #[test]
    fn lanes_arrows_repeats_timers_compensations_and_trouble_are_visible() {
        let svg = svg(&checkout());
        for lane in ["shop", "payments", "ledger", "mails"] {
            assert_eq!(svg.matches(&format!("<title>{lane}</title>")).count(), 1, "{lane}");
        }
        for wanted in [
            "payment.taken ×2",
            "↺ payment.refunded",
            "◷ payment.overdue",
            "◷ due in 59 min",
            "class=\"retrying\"",
            "in retry for 59 s",
            "class=\"missing\"",
            "not yet, for 59 s",
            "class=\"dead\"",
            "dead for 58 s",
            ">11 ms</text>",
            "4 events, 3 of them open",
        ] {
            assert!(svg.contains(wanted), "{wanted}: {svg}");
        }
        // The longest label behind the last lane takes some 220 pixels.
        let width: usize =
            svg.split(" width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        assert!(Lanes::x(3) + 10 + 220 <= width, "{width}");
        // What a handler published comes from its lane.
        let x = Lanes::x(1);
        assert!(svg.contains(&format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-weight=\"600\">payment.taken ×2", svg_row(&svg, "payment.taken ×2"))), "{svg}");
    }

    fn svg_row(svg: &str, label: &str) -> String {
        let before = svg.split(&format!(">{label}<")).next().unwrap();
        before.rsplit("y=\"").next().unwrap().split('"').next().unwrap().to_owned()
    }

    #[test]
    fn an_event_comes_from_the_lane_of_its_handler_though_the_brokers_clock_is_slow() {
        let mut flow = checkout();
        // Written after the cause was handled, by the clock of the same database.
        flow.events[1].stored[0].at = at(900);
        assert_eq!(publisher(&flow, 1), "payments");
    }

    #[test]
    fn time_goes_downwards() {
        let svg = svg(&checkout());
        let y = |label: &str| svg_row(&svg, label).parse::<usize>().unwrap();
        assert!(y("order.placed") < y("◷ payment.overdue"));
        assert!(y("◷ payment.overdue") < y("payment.taken ×2"));
        assert!(y("payment.taken ×2") < y("↺ payment.refunded"));
    }

    #[test]
    fn whatever_events_hold_is_text_and_acts_on_nothing() {
        let trap = "<script>alert(1)</script>\"'&]]>\u{202e}\u{1b}[2J\u{0}\u{fffe}";
        let mut bad = event(trap, trap, None, 1);
        bad.key = Some(trap.into());
        bad.source = Some(trap.into());
        bad.timer = Some(trap.into());
        let error = trap.to_owned();
        bad.handled.push(handled(
            trap,
            Outcome::Dead { state: trap.into(), since: at(5), reason: trap.into(), error },
        ));
        bad.sagas.push(SagaStep {
            part: trap.into(),
            saga: trap.into(),
            id: trap.into(),
            at: at(1),
            before: trap.into(),
            after: trap.into(),
            status: trap.into(),
            published: Vec::new(),
            timers_set: Vec::new(),
            timers_cancelled: Vec::new(),
            note: Some(trap.into()),
        });
        let mut flow = flow(vec![bad]);
        flow.asked = Asked::Key(trap.into());
        let svg = svg(&flow);
        assert!(
            !svg.contains("<script") && !svg.contains("href") && !svg.contains("style="),
            "{svg}"
        );
        assert!(svg.contains("&lt;script&gt;") && svg.contains("&lt;U+202E&gt;"), "{svg}");
        assert!(!svg.chars().any(|c| c != '\n' && acts(c)), "{svg:?}");
        let open = svg.matches('<').count();
        assert_eq!(open, svg.matches('>').count());
    }

    #[test]
    fn the_picture_is_bounded() {
        let events: Vec<_> = (0..MOST + 50)
            .map(|n| {
                let mut event = event(&format!("{n}"), &"long name ".repeat(100), None, n as i64);
                let done = Outcome::Done { at: at(n as i64) };
                event.handled.push(handled(&format!("consumer {n}"), done));
                event
            })
            .collect();
        let svg = svg(&flow(events));
        assert!(svg.contains("50 later events are not drawn"));
        assert_eq!(svg.matches("class=\"lane\"").count(), LANES);
        assert!(svg.contains("other services"));
        assert!(super::svg(&flow(Vec::new())).contains("nothing is known"));
    }
}
