//! A producer that does not use Pillarbox. It publishes directly to the stream, in the ways of other SDKs, and in ways
//! that no SDK should.
//!
//! Every message has a name, which is in its payload, whatever else is wrong with the message. The name identifies it
//! in the stream, among the effects, and among the dead letters. A message that is sent again keeps its name.

use std::collections::HashMap;
use std::time::Duration;

use pillarbox_event::{Event, Partition};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::event::{Draw, Kind, TOPIC};
use crate::journal::Journal;
use crate::wire::{Answer, Wire};
use crate::world::World;

/// The name of its journal.
pub(crate) const JOURNAL: &str = "foreign.journal";

/// What every name begins with, and how many digits follow.
const NAME: &str = "foreign-";
const DIGITS: usize = 6;
/// How many keys it has. No writer uses them.
const KEYS: u64 = 4;
/// How long it waits before it sends a message again that the broker did not answer, and how often it does.
const AGAIN: Duration = Duration::from_millis(200);
const TRIES: usize = 20;

/// What it records.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ForeignNote {
    /// It is about to send this message, perhaps more than once.
    Sends {
        /// The message's name.
        name: String,
        /// What is odd about it.
        habit: String,
        /// Whether a handler can receive it.
        readable: bool,
    },
    /// The broker said that it holds the message.
    Stored {
        /// The message's name.
        name: String,
    },
    /// The broker refused the message, or did not answer.
    NotSaid {
        /// The message's name.
        name: String,
        /// What it said.
        why: String,
    },
}

/// What a foreign producer may do. Messages of the first kinds can be handled, and the others become dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Habit {
    /// Ids that another source uses as well.
    IdOfSource,
    /// No source, and names in capitals.
    NoSource,
    /// The longest allowed id.
    HugeId,
    /// An id that equals another event's id once it is decoded.
    EncodedId,
    /// Optional headers that SDKs send.
    Sdk,
    /// A key, whose events must take effect in their order.
    Keyed,
    /// The same message twice.
    Twice,
    /// A message without headers.
    NoHeaders,
    /// The event is the payload, in JSON.
    Structured,
    EmptyId,
    TooLongId,
    /// A version of CloudEvents that does not exist.
    NoVersion,
    /// An event whose payload cannot be read.
    UnreadablePayload,
    /// An event of a type that no handler handles.
    UnknownType,
    /// A header with a character that no header may hold.
    ControlCharacter,
    /// Headers that no client library can parse; the number selects one of [`MALFORMED`].
    Malformed(usize),
}

const READABLE: &[Habit] = &[
    Habit::IdOfSource,
    Habit::NoSource,
    Habit::HugeId,
    Habit::EncodedId,
    Habit::Sdk,
    Habit::Keyed,
    Habit::Twice,
];
const UNREADABLE: &[Habit] = &[
    Habit::NoHeaders,
    Habit::Structured,
    Habit::EmptyId,
    Habit::TooLongId,
    Habit::NoVersion,
    Habit::UnreadablePayload,
    Habit::UnknownType,
    Habit::ControlCharacter,
];
/// Header blocks that end the connection of a client that parses them.
const MALFORMED: &[(&str, &[u8])] = &[
    ("Latin-1", b"NATS/1.0\r\nce-id: 1\r\nx-name: Caf\xe9\r\n\r\n"),
    ("no colon", b"NATS/1.0\r\nthere is no colon in this\r\n\r\n"),
    ("a status", b"NATS/1.0 409 Consumer Deleted\r\n\r\n"),
    ("a blank in a name", b"NATS/1.0\r\nbad name: x\r\n\r\n"),
    ("no version", b"x: y\r\n\r\n"),
    ("a lone carriage return", b"NATS/1.0\r\nx: a\rb\r\n\r\n"),
];

impl Habit {
    fn draw(random: &mut StdRng) -> Self {
        let which = random.random_range(0..1_000);
        let any = |all: &[Self], random: &mut StdRng| all[random.random_range(0..all.len())];
        match which {
            // Each of these breaks a connection of every consumer.
            0..20 => Self::Malformed(random.random_range(0..MALFORMED.len())),
            20..160 => any(UNREADABLE, random),
            _ => any(READABLE, random),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Malformed(which) => format!("Malformed: {}", MALFORMED[which].0),
            habit => format!("{habit:?}"),
        }
    }

    /// The header block of a message with this number, which is the `turn`th of its habit. `None` if it has none.
    fn headers(self, number: u64, turn: u64, key: Option<&str>) -> Option<Vec<u8>> {
        let pairs: Vec<(&str, String)> = match self {
            Self::NoHeaders => return None,
            Self::Malformed(which) => return Some(MALFORMED[which].1.to_vec()),
            // Two sources that both count from 1.
            Self::IdOfSource => vec![
                ("ce-id", (turn / 2 + 1).to_string()),
                ("ce-source", ["/billing", "/returns"][usize::from(turn % 2 == 1)].to_owned()),
            ],
            Self::NoSource => vec![("CE-Id", format!("no-source/{number}"))],
            Self::HugeId => vec![("ce-id", format!("{number:0>255}"))],
            Self::EncodedId => vec![
                ("ce-id", format!("{}{}", turn / 2, ["%2F", "%2f"][usize::from(turn % 2 == 1)])),
                ("ce-source", "/encoded".to_owned()),
            ],
            Self::Sdk => vec![
                ("ce-specversion", "1.0".to_owned()),
                ("ce-id", turn.to_string()),
                ("ce-source", "urn:sdk".to_owned()),
                ("ce-time", "2026-01-01T00:00:00Z".to_owned()),
                ("ce-subject", "order%2042".to_owned()),
                ("ce-someextension", "1".to_owned()),
                ("content-type", "application/json; charset=utf-8".to_owned()),
                ("Nats-Msg-Id", format!("sdk-{number}")),
            ],
            Self::Keyed => vec![
                ("ce-id", turn.to_string()),
                ("ce-source", "/keyed".to_owned()),
                ("ce-partitionkey", key.unwrap_or_default().to_owned()),
            ],
            Self::Twice => {
                vec![("ce-id", turn.to_string()), ("ce-source", "/twice".to_owned())]
            }
            Self::Structured => {
                vec![("content-type", "application/cloudevents+json".to_owned())]
            }
            Self::EmptyId => vec![("ce-id", String::new())],
            Self::TooLongId => vec![("ce-id", format!("{number:0>256}"))],
            Self::NoVersion => {
                vec![("ce-specversion", "0.3".to_owned()), ("ce-id", turn.to_string())]
            }
            Self::UnreadablePayload => {
                vec![("ce-id", turn.to_string()), ("ce-source", "/unreadable".to_owned())]
            }
            Self::UnknownType => {
                vec![("ce-id", turn.to_string()), ("ce-source", "/unknown".to_owned())]
            }
            Self::ControlCharacter => {
                vec![("ce-id", turn.to_string()), ("x-note", "a\tb\u{1}".to_owned())]
            }
        };
        let event_type = match self {
            Self::Structured => None,
            Self::UnknownType => Some(("ce-type", "somebody.else")),
            Self::NoSource => Some(("CE-Type", Draw::TYPE)),
            _ => Some(("ce-type", Draw::TYPE)),
        };
        let event_type = event_type.map(|(name, value)| (name, value.to_owned()));
        let mut block = "NATS/1.0\r\n".to_owned();
        for (name, value) in pairs.into_iter().chain(event_type) {
            block.push_str(&format!("{name}: {value}\r\n"));
        }
        block.push_str("\r\n");
        Some(block.into_bytes())
    }

    /// The payload, which contains the name.
    fn payload(self, draw: &Draw) -> anyhow::Result<Vec<u8>> {
        let name = draw.name.as_deref().unwrap_or_default();
        Ok(match self {
            Self::UnreadablePayload => [b"\xff\xfe no JSON, ", name.as_bytes()].concat(),
            Self::Structured => serde_json::to_vec(&serde_json::json!({
                "specversion": "1.0", "id": name, "source": "/structured", "type": Draw::TYPE, "data": draw,
            }))?,
            _ => serde_json::to_vec(draw)?,
        })
    }
}

/// The name in a payload.
pub(crate) fn name_in(payload: &[u8]) -> Option<String> {
    let at = payload.windows(NAME.len()).position(|window| window == NAME.as_bytes())?;
    let name = payload.get(at..at + NAME.len() + DIGITS)?;
    String::from_utf8(name.to_vec()).ok()
}

/// Whether this is such a name, and not the id of an event of the outbox.
pub(crate) fn is_name(id: &str) -> bool {
    id.starts_with(NAME)
}

/// Publishes until it is told to stop. It then stops after the current try.
///
/// # Errors
/// The errors of its journal.
pub(crate) async fn produce(
    world: &World,
    seed: u64,
    longest_pause: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let journal = Journal::open(&world.folder.join(JOURNAL))?;
    let mut random = StdRng::seed_from_u64(seed ^ 0xf0e1);
    let mut wire = None;
    let mut turns: HashMap<Habit, u64> = HashMap::new();
    let mut last: HashMap<String, i64> = HashMap::new();
    for number in 0.. {
        let habit = Habit::draw(&mut random);
        let turn = turns.entry(habit).or_default();
        let key = (habit == Habit::Keyed).then(|| format!("foreign{}", *turn % KEYS));
        let of_key = key.as_ref().map_or(0, |key| {
            let last = last.entry(key.clone()).or_default();
            *last += 1;
            *last
        });
        let name = format!("{NAME}{number:0DIGITS$}");
        let readable = READABLE.contains(&habit);
        journal.note(ForeignNote::Sends { name: name.clone(), habit: habit.text(), readable })?;
        let subject = match world.partitions {
            1 => TOPIC.to_owned(),
            of => Partition::of_key(key.as_deref().unwrap_or(&name), of).subject(TOPIC),
        };
        let headers = habit.headers(number, *turn, key.as_deref());
        let draw = Draw { key, number: of_key, kind: Kind::Plain, name: Some(name.clone()) };
        let payload = habit.payload(&draw)?;
        *turn += 1;
        for _ in 0..if habit == Habit::Twice { 2 } else { 1 } {
            // A message that cannot be read is identified only by its place. If it were sent again, it would be another
            // message.
            for _ in 0..if readable { TRIES } else { 1 } {
                let why = match send(world, &mut wire, &subject, headers.as_deref(), &payload).await
                {
                    Ok(Answer::Stored) => {
                        journal.note(ForeignNote::Stored { name: name.clone() })?;
                        break;
                    }
                    Ok(Answer::Refused(why)) => {
                        journal.note(ForeignNote::NotSaid { name: name.clone(), why })?;
                        break;
                    }
                    Err(error) => format!("{error:#}"),
                };
                wire = None;
                journal.note(ForeignNote::NotSaid { name: name.clone(), why })?;
                if stop.is_cancelled() {
                    return Ok(());
                }
                sleep(AGAIN).await;
            }
        }
        let pause = longest_pause.mul_f64(random.random_range(0.0..1.0));
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            break;
        }
    }
    Ok(())
}

async fn send(
    world: &World,
    wire: &mut Option<Wire>,
    subject: &str,
    headers: Option<&[u8]>,
    payload: &[u8],
) -> anyhow::Result<Answer> {
    let wire = match wire {
        Some(wire) => wire,
        None => wire.insert(Wire::connect(&world.nats_ports).await?),
    };
    wire.publish(subject, headers, payload.to_vec()).await
}

#[cfg(test)]
mod tests {
    use pillarbox_event::RawEvent;

    use super::*;

    /// What becomes of a message of this habit when it is read. `None` if no client library would pass it on.
    fn read(habit: Habit, turn: u64) -> Option<Result<(String, Option<Draw>), String>> {
        let name = format!("{NAME}{turn:0DIGITS$}");
        let draw = Draw { key: None, number: 0, kind: Kind::Plain, name: Some(name.clone()) };
        let payload = habit.payload(&draw).unwrap();
        assert_eq!(name_in(&payload).as_deref(), Some(&*name), "{habit:?}");
        let block = habit.headers(turn, turn, Some("foreign0")).unwrap_or_default();
        let block =
            String::from_utf8(block).ok().filter(|_| !matches!(habit, Habit::Malformed(_)))?;
        let pairs = block.lines().filter_map(|line| line.split_once(':'));
        let pairs = pairs.map(|(name, value)| (name, value.trim_matches(' ')));
        Some(match RawEvent::from_wire(TOPIC, pairs, payload.into()) {
            Ok(event) if event.event_type() == Draw::TYPE => {
                let draw = serde_json::from_slice(event.payload()).ok();
                Ok((event.identity().to_string(), draw))
            }
            Ok(_) => Ok((String::new(), None)),
            Err(error) => Err(error.to_string()),
        })
    }

    #[test]
    fn what_is_called_readable_is_an_event_and_nothing_else_is() {
        let mut identities = std::collections::HashSet::new();
        for turn in 0..4 {
            for habit in READABLE {
                let (identity, draw) = read(*habit, turn).unwrap().unwrap();
                assert!(draw.is_some_and(|draw| draw.name.is_some()), "{habit:?}");
                assert!(identities.insert(identity), "{habit:?} is told apart from all others");
            }
            for habit in UNREADABLE {
                let read = read(*habit, turn).unwrap();
                assert!(!matches!(read, Ok((_, Some(_)))), "{habit:?}: {read:?}");
            }
        }
    }

    #[test]
    fn a_name_is_found_in_any_payload_and_none_in_that_of_the_outbox() {
        assert_eq!(name_in(b"\xff foreign-000012\xfe").as_deref(), Some("foreign-000012"));
        assert_eq!(name_in(br#"{"key":"k1","number":1}"#), None);
        assert_eq!(name_in(b"foreign-0"), None);
        assert!(is_name("foreign-000012") && !is_name("0199b0c5-5c7e-7000-8000-000000000001"));
    }
}
