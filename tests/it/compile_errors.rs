//! What the compiler says about the mistakes that users make: the sentence with the remedy, at the place of the
//! mistake.
//!
//! Each program is compiled by rustc against the library that cargo built for this test, so nothing else is built. Only
//! our own sentences are compared, because the compiler's differ from version to version.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use serde_json::Value;

/// Stands before each program.
const BEFORE: &str = "#![allow(unused)]
use pillarbox::{outbox, BatchHandler, Event, Handler, HandlerError, RawEvent, Received, Router, Tx, with_state};
use serde::{Deserialize, Serialize};
";

/// A program without a mistake. It shows that an error of the others is not one of this test.
const RIGHT: &str = r#"
#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed")]
pub struct OrderPlacedV1 { order: i64 }

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", topic = "orders.placed", key = order, version = 2, from = OrderPlacedV1)]
pub struct OrderPlaced { order: i64 }

impl From<OrderPlacedV1> for OrderPlaced {
    fn from(old: OrderPlacedV1) -> Self { Self { order: old.order } }
}

async fn charge(tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
    outbox::publish(tx, &*placed).await?;
    Ok(())
}

pub fn router() -> Router { Router::new().on(charge) }
"#;

/// A program with a mistake.
struct Mistake {
    what: &'static str,
    code: &'static str,
    /// What the error points at.
    at: &'static str,
    /// Sentences of the error, its labels and its notes.
    said: &'static [&'static str],
}

const HANDLERS: &[Mistake] = &[
    // With the type of `tx`, it is the borrow checker that refuses the closure, in its own words.
    Mistake {
        what: "a closure that captures",
        code: r#"
            pub fn router(name: String) -> Router {
                Router::new().on(move |tx, event: RawEvent| {
                    let name = name.clone();
                    async move { outbox::publish(tx, event).await?; drop(name); Ok::<(), HandlerError>(()) }
                })
            }"#,
        at: "move |tx, event: RawEvent|",
        said: &[
            "is not a handler of events",
            "a closure that captures something is not a handler: name a function and give it its state by `with_state`",
        ],
    },
    Mistake {
        what: "a transaction without `&mut`",
        code: r#"
            async fn charge(tx: Tx, event: RawEvent) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "charge",
        said: &["is not a handler of events", "check that it takes `&mut Tx` (not `Tx`)"],
    },
    Mistake {
        what: "a transaction that cannot be written to",
        code: r#"
            async fn charge(tx: &Tx, event: RawEvent) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "charge",
        said: &["is not a handler of events", "check that it takes `&mut Tx`"],
    },
    Mistake {
        what: "an error of one's own that is no error",
        code: r#"
            pub enum Refused { TooMuch }
            async fn charge(tx: &mut Tx, event: RawEvent) -> Result<(), Refused> { Ok(()) }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "charge",
        said: &[
            "is not a handler of events",
            "that its error converts into `HandlerError` (implement `std::error::Error` for it, as `thiserror` does)",
        ],
    },
    Mistake {
        what: "a handler that returns nothing",
        code: r#"
            async fn charge(tx: &mut Tx, event: RawEvent) {}
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "charge",
        said: &[
            "a handler is a function `async fn(tx: &mut Tx, event: E) -> Result<(), HandlerError>`",
        ],
    },
    Mistake {
        what: "a handler that keeps something across an await that cannot move to another thread",
        code: r#"
            async fn charge(tx: &mut Tx, event: RawEvent) -> Result<(), HandlerError> {
                let count = std::rc::Rc::new(1);
                outbox::publish(tx, event).await?;
                drop(count);
                Ok(())
            }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "charge",
        said: &[
            "is not a handler of events",
            "that it holds nothing across an `.await` that is not `Send`",
        ],
    },
    Mistake {
        what: "a handler of a type that is no event",
        code: r#"
            #[derive(Deserialize)]
            pub struct Plain { order: i64 }
            async fn charge(tx: &mut Tx, plain: Plain) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "on",
        said: &[
            "a handler cannot take `Plain`",
            "take a type with `#[derive(Event, serde::Deserialize)]`, a `RawEvent`, or a `Received` of either",
        ],
    },
    Mistake {
        what: "a received type that is no event",
        code: r#"
            #[derive(Deserialize)]
            pub struct Plain { order: i64 }
            async fn charge(tx: &mut Tx, plain: Received<Plain>) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "on",
        said: &[
            "a handler cannot take `Received<Plain>`",
            "take a type with `#[derive(Event, serde::Deserialize)]`, a `RawEvent`, or a `Received` of either",
        ],
    },
    Mistake {
        what: "an event that cannot be read",
        code: r#"
            #[derive(Event, Serialize)]
            #[event(type = "order.placed", topic = "orders.placed")]
            pub struct OrderPlaced { order: i64 }
            async fn charge(tx: &mut Tx, placed: OrderPlaced) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on(charge) }"#,
        at: "on",
        said: &[
            "a handler cannot take `OrderPlaced`",
            "take a type with `#[derive(Event, serde::Deserialize)]`, a `RawEvent`, or a `Received` of either",
        ],
    },
    Mistake {
        what: "a handler of batches that takes a list by value",
        code: r#"
            async fn charge(tx: &mut Tx, all: Vec<Received<RawEvent>>) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on_batch(charge) }"#,
        at: "charge",
        said: &[
            "is not a handler of batches",
            "`async fn(tx: &mut Tx, events: &[Received<E>]) -> Result<(), HandlerError>`",
        ],
    },
    Mistake {
        what: "a struct that handles only one of two events",
        code: r#"
            #[derive(Event, Deserialize)]
            #[event(type = "order.placed", topic = "orders.placed")]
            pub struct Placed {}
            #[derive(Event, Deserialize)]
            #[event(type = "order.paid", topic = "orders.paid")]
            pub struct Paid {}
            pub struct Open;
            impl Handler<Placed> for Open {
                async fn handle(&self, tx: &mut Tx, placed: Placed) -> Result<(), HandlerError> { Ok(()) }
            }
            pub fn router() -> Router { Router::new().on_each::<(Placed, Paid)>(Open) }"#,
        at: "Open",
        said: &["does not handle each event of", "implement `Handler` for each type of event"],
    },
    Mistake {
        what: "state that the function does not take",
        code: r#"
            async fn charge(tx: &mut Tx, event: RawEvent, name: &String) -> Result<(), HandlerError> { Ok(()) }
            pub fn router() -> Router { Router::new().on(with_state(7, charge)) }"#,
        at: "with_state(7, charge)",
        said: &["is not a handler of events"],
    },
];

const PUBLISHING: &[Mistake] = &[
    Mistake {
        what: "a type that is no event",
        code: r#"
            #[derive(Serialize)]
            pub struct Plain { order: i64 }
            pub async fn place(tx: &mut Tx) { let _ = outbox::publish(tx, Plain { order: 1 }).await; }"#,
        at: "Plain { order: 1 }",
        said: &[
            "`Plain` cannot be published",
            "publish a type with `#[derive(Event, serde::Serialize)]`",
        ],
    },
    Mistake {
        what: "an event that cannot be written",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed")]
            pub struct OrderPlaced { order: i64 }
            pub async fn place(tx: &mut Tx) { let _ = outbox::publish(tx, OrderPlaced { order: 1 }).await; }"#,
        at: "OrderPlaced { order: 1 }",
        said: &["publish a type with `#[derive(Event, serde::Serialize)]`"],
    },
    Mistake {
        what: "a transaction of another version of sqlx",
        code: r#"
            pub mod sqlx_0_8 { pub struct Transaction; }
            pub async fn place(tx: &mut sqlx_0_8::Transaction, event: RawEvent) {
                let _ = outbox::publish(tx, event).await;
            }"#,
        at: "tx",
        said: &[
            "an event is published in a transaction, and `Transaction` is none",
            "Pillarbox takes those of sqlx 0.9",
        ],
    },
];

const EVENTS: &[Mistake] = &[
    Mistake {
        what: "no type",
        code: r#"
            #[derive(Event)]
            #[event(topic = "orders.placed")]
            pub struct OrderPlaced { order: i64 }"#,
        at: "event",
        said: &["the event has no `type`; add `#[event(type = \"order.placed\")]`"],
    },
    Mistake {
        what: "no attribute",
        code: r#"
            #[derive(Event)]
            pub struct OrderPlaced { order: i64 }"#,
        at: "OrderPlaced",
        said: &["the event has no `type`; add `#[event(type = \"order.placed\")]`"],
    },
    Mistake {
        what: "a key that is no field",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", key = ordr)]
            pub struct OrderPlaced { order: i64, cents: i64 }"#,
        at: "ordr",
        said: &["`OrderPlaced` has no field `ordr`; it has `order`, `cents`"],
    },
    Mistake {
        what: "a key that is no text",
        code: r#"
            pub struct Number(i64);
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", key = order)]
            pub struct OrderPlaced { order: Number }"#,
        at: "Number",
        said: &["the trait `std::fmt::Display` is not implemented for `Number`"],
    },
    Mistake {
        what: "a topic with a field that is none",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.{regin}.placed")]
            pub struct OrderPlaced { region: String }"#,
        at: "\"orders.{regin}.placed\"",
        said: &["`OrderPlaced` has no field `regin`; it has `region`"],
    },
    Mistake {
        what: "a topic with a wildcard",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.*.placed")]
            pub struct OrderPlaced { region: String }"#,
        at: "\"orders.*.placed\"",
        said: &["name the field that gives the word, as in \"orders.{region}\""],
    },
    Mistake {
        what: "a key of an enum",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", key = order)]
            pub enum Changed { Placed { order: i64 } }"#,
        at: "order",
        said: &["only a struct has fields that this can name; implement `Event` by hand"],
    },
    Mistake {
        what: "a name that is none",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", keys = order)]
            pub struct OrderPlaced { order: i64 }"#,
        at: "keys",
        said: &["an event has `type`, `topic`, `key`, `version` and `from`; use one of them"],
    },
    Mistake {
        what: "the same twice",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", version = 2)]
            #[event(version = 3)]
            pub struct OrderPlaced { order: i64 }"#,
        at: "version",
        said: &["this stands here twice; remove one"],
    },
];

const VERSIONS: &[Mistake] = &[
    Mistake {
        what: "version 0",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", version = 0)]
            pub struct OrderPlaced { order: i64 }"#,
        at: "0",
        said: &["versions are whole numbers from 1; write `version = 2`"],
    },
    Mistake {
        what: "an older version of the first",
        code: r#"
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", from = Before)]
            pub struct OrderPlaced { order: i64 }"#,
        at: "Before",
        said: &["version 1 has no older version; add `version = 2`, or remove `from`"],
    },
    Mistake {
        what: "an older version that does not say how it becomes the newer one",
        code: r#"
            #[derive(Event, Deserialize)]
            #[event(type = "order.placed", topic = "orders.placed")]
            pub struct Before { order: i64 }
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", version = 2, from = Before)]
            pub struct OrderPlaced { order: i64 }"#,
        at: "Before",
        said: &["the trait `From<Before>` is not implemented for `OrderPlaced`"],
    },
    Mistake {
        what: "an older version that is not older",
        code: r#"
            #[derive(Event, Deserialize)]
            #[event(type = "order.placed", topic = "orders.placed", version = 2)]
            pub struct Before { order: i64 }
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", version = 2, from = Before)]
            pub struct OrderPlaced { order: i64 }
            impl From<Before> for OrderPlaced { fn from(old: Before) -> Self { Self { order: old.order } } }"#,
        at: "Before",
        said: &["must have a lower `version` than the event that is made from it"],
    },
    Mistake {
        what: "an older version of another event",
        code: r#"
            #[derive(Event, Deserialize)]
            #[event(type = "order.paid", topic = "orders.placed")]
            pub struct Before { order: i64 }
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", version = 2, from = Before)]
            pub struct OrderPlaced { order: i64 }
            impl From<Before> for OrderPlaced { fn from(old: Before) -> Self { Self { order: old.order } } }"#,
        at: "Before",
        said: &[
            "the type named by `from` has another `type`; all versions of an event have the same one",
        ],
    },
    Mistake {
        what: "an older version of another topic",
        code: r#"
            #[derive(Event, Deserialize)]
            #[event(type = "order.placed", topic = "orders")]
            pub struct Before { order: i64 }
            #[derive(Event)]
            #[event(type = "order.placed", topic = "orders.placed", version = 2, from = Before)]
            pub struct OrderPlaced { order: i64 }
            impl From<Before> for OrderPlaced { fn from(old: Before) -> Self { Self { order: old.order } } }"#,
        at: "Before",
        said: &["has another `topic`, so consumers would not read its events"],
    },
];

/// The libraries against which a program is compiled.
#[derive(Clone)]
struct Libraries {
    folder: PathBuf,
    pillarbox: PathBuf,
    serde: PathBuf,
}

impl Libraries {
    /// Those that this test is linked with. If cargo has built some in several ways, they are the newest that fit
    /// together.
    fn find() -> Self {
        let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let (ours, serdes) = (built(&folder, "pillarbox"), built(&folder, "serde"));
        let mut last = String::new();
        for pillarbox in &ours {
            for serde in &serdes {
                let (folder, pillarbox, serde) = (folder.clone(), pillarbox.clone(), serde.clone());
                let libraries = Self { folder, pillarbox, serde };
                match libraries.compile(RIGHT) {
                    Ok(()) => return libraries,
                    Err(errors) => last = shown(&errors),
                }
            }
        }
        panic!("the program without a mistake does not compile with any of {ours:?}:\n{last}");
    }

    /// Compiles a program, and returns the compiler's messages if it does not compile.
    fn compile(&self, code: &str) -> Result<(), Vec<Value>> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let made = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("mistake-{}-{number}.rmeta", std::process::id()));
        let named = |name: &str, path: &Path| format!("{name}={}", path.display());
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "--crate-type=lib", "--crate-name=mistake", "--emit=metadata"])
            .args(["--error-format=json", "-o"])
            .arg(&made)
            .args(["-L", &named("dependency", &self.folder)])
            .args(["--extern", &named("pillarbox", &self.pillarbox)])
            .args(["--extern", &named("serde", &self.serde)])
            .arg("-")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = rustc.stdin.take().unwrap();
        stdin.write_all(format!("{BEFORE}{code}").as_bytes()).unwrap();
        drop(stdin);
        let output = rustc.wait_with_output().unwrap();
        let _ = std::fs::remove_file(made);
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Whether the mistake is told as it should be; if not, what the compiler said instead.
    fn check(&self, mistake: &Mistake) -> Result<(), String> {
        let Err(errors) = self.compile(mistake.code) else {
            return Err(format!("{}: it compiles", mistake.what));
        };
        let told = errors.iter().any(|error| {
            let texts = texts(error).join("\n");
            let points = places(error).iter().any(|place| place.contains(mistake.at));
            points && mistake.said.iter().all(|said| texts.contains(said))
        });
        match told {
            true => Ok(()),
            false => Err(format!(
                "{}: no error at `{}` says {:?}:\n{}",
                mistake.what,
                mistake.at,
                mistake.said,
                shown(&errors)
            )),
        }
    }
}

/// The libraries of this name, the newest first.
fn built(folder: &Path, name: &str) -> Vec<PathBuf> {
    let of_name = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let hash =
            file.strip_prefix(&format!("lib{name}-")).and_then(|rest| rest.strip_suffix(".rlib"));
        hash.is_some_and(|hash| hash.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(of_name).collect();
    let age = |path: &PathBuf| {
        path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    all.sort_by_key(|path| std::cmp::Reverse(age(path)));
    all
}

/// A message with its labels and notes.
fn texts(message: &Value) -> Vec<&str> {
    let list = |name: &str| message[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = message["message"].as_str();
    let labels = list("spans").iter().filter_map(|span| span["label"].as_str());
    own.into_iter().chain(labels).chain(list("children").iter().flat_map(texts)).collect()
}

/// What an error points at, as it stands in the program.
fn places(error: &Value) -> Vec<String> {
    let spans = error["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
    let marked = |line: &Value| {
        let at = |name: &str| {
            line[name].as_u64().and_then(|at| usize::try_from(at).ok()).unwrap_or(1) - 1
        };
        let text = line["text"].as_str().unwrap_or_default().chars();
        text.skip(at("highlight_start"))
            .take(at("highlight_end") - at("highlight_start"))
            .collect::<String>()
    };
    let primary =
        spans.iter().filter(|span| span["is_primary"] == true && error["level"] == "error");
    primary
        .map(|span| span["text"].as_array().into_iter().flatten().map(marked).collect())
        .collect()
}

fn shown(errors: &[Value]) -> String {
    errors.iter().filter_map(|error| error["rendered"].as_str()).collect()
}

/// Checks them on two threads.
fn check_all(mistakes: &[Mistake]) {
    let libraries = Libraries::find();
    let (one, other) = mistakes.split_at(mistakes.len() / 2);
    let check = |some: &[Mistake]| -> Vec<String> {
        some.iter().filter_map(|mistake| libraries.check(mistake).err()).collect()
    };
    let failed = std::thread::scope(|scope| {
        let first = scope.spawn(|| check(one));
        let mut failed = check(other);
        failed.extend(first.join().unwrap());
        failed
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_wrong_handler_is_told_with_the_remedy() {
    check_all(HANDLERS);
}

#[test]
fn what_cannot_be_published_is_told_with_the_remedy() {
    check_all(PUBLISHING);
}

#[test]
fn a_wrong_event_is_told_at_the_place_of_the_mistake() {
    check_all(EVENTS);
}

#[test]
fn a_wrong_older_version_is_told_where_it_is_named() {
    check_all(VERSIONS);
}
