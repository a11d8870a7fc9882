//! One consumer: how it is, its processes, and what operators do with it: pause, resume, limit.

use std::convert::Infallible;
use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::{Query as Asked, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use pillarbox_store::consumers::{
    Condition, Consumers, ControlError, Overview, Process, SILENT_AFTER_S,
};
use serde::Deserialize;

use super::change::refused;
use super::consumers::one;
use super::{Frame, given, html, said, unanswered};
use crate::guard::Admitted;
use crate::place::{Place, Unanswered, in_time};
use crate::state::State;
use crate::words::{Moment, Query, age, counted, number};

const TITLE: &str = "One consumer";

/// Which consumer, and which type of its events. It is in the URL, so that no form changes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Which {
    place: String,
    consumer: String,
    #[serde(rename = "type")]
    event_type: String,
}

/// What is to be done with it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    form_token: String,
    #[serde(rename = "do")]
    verb: String,
    /// The type of the events that are to be paused.
    #[serde(rename = "type")]
    event_type: String,
    rate: String,
    note: String,
}

#[derive(Template)]
#[template(path = "consumer.html")]
struct Page {
    frame: Frame,
    place: String,
    one: Query,
    name: String,
    condition: Condition,
    is_paused: bool,
    stream: String,
    lag: String,
    measured: Option<Moment>,
    oldest: String,
    failing: i64,
    since: Option<Moment>,
    parked: String,
    dead: i64,
    dead_shown: String,
    retries: Query,
    letters: Query,
    pauses: Vec<Paused>,
    rate: Option<Limited>,
    processes: Vec<Running>,
    silent_after: i64,
    refusal: Option<String>,
}

/// A pause that can be ended.
struct Paused {
    what: String,
    by: String,
    since: String,
    note: String,
    verb: &'static str,
    which: Query,
}

/// A limit that can be removed.
struct Limited {
    what: String,
    by: String,
    since: String,
    note: String,
}

/// A process, running or gone.
struct Running {
    process: Process,
    started: Moment,
    seen: Moment,
    reason: String,
}

pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
) -> Response {
    let Some(place) = state.place(&which.place) else { return gone(&state, &admitted) };
    shown(&state, &admitted, place, &which.consumer, None).await
}

fn gone(state: &State, admitted: &Admitted) -> Response {
    let text = "The database knows no such consumer.";
    let remedy = "It was removed, or the link is wrong. Begin at the consumers.";
    said(state, admitted, StatusCode::NOT_FOUND, TITLE, text, remedy)
}

async fn shown(
    state: &State,
    admitted: &Admitted,
    place: &Place,
    consumer: &str,
    refusal: Option<String>,
) -> Response {
    match read(place, consumer).await {
        Ok(Some((found, processes))) => {
            let frame = Frame::new(state, admitted, "/consumers", TITLE);
            let status = match refusal {
                Some(_) => StatusCode::UNPROCESSABLE_ENTITY,
                None => StatusCode::OK,
            };
            html(status, &whole(frame, place, found, processes, refusal))
        }
        Ok(None) => gone(state, admitted),
        Err(why) => unanswered(state, admitted, TITLE, why),
    }
}

async fn read(
    place: &Place,
    consumer: &str,
) -> Result<Option<(Overview, Vec<Process>)>, Unanswered> {
    let consumers = place.consumers().await?;
    let Some(found) = in_time(consumers.find(consumer)).await? else { return Ok(None) };
    let processes = in_time(consumers.processes(consumer)).await?;
    Ok(Some((found, processes)))
}

fn whole(
    frame: Frame,
    place: &Place,
    found: Overview,
    processes: Vec<Process>,
    refusal: Option<String>,
) -> Page {
    let here = Query::default().with("place", place.name());
    let this = one(place, &found.consumer);
    let pauses = found.pauses.into_iter().map(|pause| Paused {
        what: pause.event_type.as_ref().map_or("All events".to_owned(), |it| format!("Type {it}")),
        by: pause.by,
        since: pause.since,
        note: pause.note.unwrap_or_else(|| "no reason was given".to_owned()),
        verb: if pause.event_type.is_some() { "resume-type" } else { "resume" },
        which: this.clone().with_some("type", &pause.event_type.unwrap_or_default()),
    });
    Page {
        frame,
        place: place.name().to_owned(),
        condition: found.condition,
        is_paused: found.condition == Condition::Paused,
        stream: found.stream.unwrap_or_else(|| "unknown: no process has said it".to_owned()),
        lag: found.lag_events.map_or_else(
            || "unknown: no process has measured it".to_owned(),
            |lag| counted(lag, "event", "events"),
        ),
        measured: found.measured_age_seconds.map(Moment::ago),
        oldest: match (found.lag_events, found.oldest_age_seconds) {
            (Some(0), _) => "none waits".to_owned(),
            (_, Some(oldest)) => age(oldest),
            (_, None) => "unknown".to_owned(),
        },
        failing: found.failing_events,
        since: found.oldest_failure_seconds.map(Moment::ago),
        parked: number(found.parked_events),
        dead: found.dead_letters,
        dead_shown: number(found.dead_letters),
        retries: here.clone().with("consumer", &found.consumer),
        letters: here.with("side", "inbox").with("owner", &found.consumer),
        pauses: pauses.collect(),
        rate: found.rate.map(|rate| Limited {
            what: format!("at most {} events per second", rate.per_second),
            by: rate.by,
            since: rate.since,
            note: rate.note.unwrap_or_else(|| "no reason was given".to_owned()),
        }),
        processes: processes.into_iter().map(running).collect(),
        silent_after: SILENT_AFTER_S,
        one: this,
        name: found.consumer,
        refusal,
    }
}

fn running(process: Process) -> Running {
    Running {
        started: Moment::ago(process.started_age_seconds),
        seen: Moment::ago(process.seen_age_seconds),
        reason: process.reason.clone().unwrap_or_default(),
        process,
    }
}

/// Pauses, resumes or limits it.
pub(crate) async fn change(
    Shared(state): Shared<Arc<State>>,
    admitted: Admitted,
    Asked(which): Asked<Which>,
    Form(wish): Form<Wish>,
) -> Response {
    if !admitted.may_change() || !admitted.is_own(&state, &wish.form_token) {
        return refused(&state, &admitted);
    }
    let Some(place) = state.place(&which.place) else { return gone(&state, &admitted) };
    let control = match Control::wanted(&which, &wish) {
        Ok(control) => control,
        Err(why) => {
            return shown(&state, &admitted, place, &which.consumer, Some(why)).await;
        }
    };
    match control.carry_out(place, &which.consumer, &admitted, &wish.note).await {
        Ok(Ok(())) => {
            let what = wish.verb.as_str();
            tracing::info!(
                visitor = admitted.visitor.name,
                what,
                "console: a consumer was changed"
            );
            let to = format!("{}/consumers/one?{}", state.base, one(place, &which.consumer));
            Redirect::to(&to).into_response()
        }
        Ok(Err(ControlError::Unknown { .. })) => gone(&state, &admitted),
        Ok(Err(ControlError::Database(error))) => {
            unanswered(&state, &admitted, TITLE, Unanswered::by(&error))
        }
        Ok(Err(why)) => {
            shown(&state, &admitted, place, &which.consumer, Some(why.to_string())).await
        }
        Err(why) => unanswered(&state, &admitted, TITLE, why),
    }
}

/// What a form wants.
enum Control {
    /// All events, or those of one type.
    Pause(Option<String>),
    Resume(Option<String>),
    /// Events per second, or no limit.
    Limit(Option<f64>),
}

impl Control {
    /// A form that should name a type and does not must not mean all events.
    fn wanted(which: &Which, wish: &Wish) -> Result<Self, String> {
        let is_pause = matches!(&*wish.verb, "pause" | "pause-type");
        if is_pause && given(&wish.note).is_none() {
            return Err("Say why: a pause needs a note.".to_owned());
        }
        match &*wish.verb {
            "pause" => Ok(Self::Pause(None)),
            "pause-type" => match given(&wish.event_type) {
                Some(event_type) => Ok(Self::Pause(Some(event_type))),
                None => Err("Name the event type that is to be paused.".to_owned()),
            },
            "resume" => Ok(Self::Resume(None)),
            "resume-type" if !which.event_type.is_empty() => {
                Ok(Self::Resume(Some(which.event_type.clone())))
            }
            "limit" => match wish.rate.trim().parse() {
                Ok(rate) => Ok(Self::Limit(Some(rate))),
                Err(_) => Err(ControlError::Rate.to_string()),
            },
            "no-limit" => Ok(Self::Limit(None)),
            _ => Err("The form does not say what to do. Use one of the forms below.".to_owned()),
        }
    }

    /// It is no failure if somebody else did the same before: the page then shows who.
    async fn carry_out(
        &self,
        place: &Place,
        consumer: &str,
        admitted: &Admitted,
        note: &str,
    ) -> Result<Result<(), ControlError>, Unanswered> {
        let consumers: Consumers = place.consumers().await?;
        let operator = admitted.operator(note);
        let done = async {
            Ok::<_, Infallible>(match self {
                Self::Pause(of) => consumers.pause(consumer, of.as_deref(), &operator).await,
                Self::Resume(of) => consumers.resume(consumer, of.as_deref(), &operator).await,
                Self::Limit(rate) => consumers.limit(consumer, *rate, &operator).await,
            })
        };
        Ok(in_time(done).await?.map(drop))
    }
}
