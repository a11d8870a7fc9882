//! What happens to one request.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, response};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pillarbox_store::full_text;
use pillarbox_store::limit::{limited, within};
use tower_service::Service;

use crate::delivery::{EndOnDrop, Slot};
use crate::error::{BoxError, InboxError, fault_of};
use crate::fault::Fault;
use crate::http::command::Command;
use crate::http::metrics::{Count, outcome};
use crate::http::problem::Problem;
use crate::http::requests::{Answer, Identity, Known};
use crate::http::settings::Settings;
use crate::http::verdict::Verdict;
use crate::http::{fingerprint, key, scope};
use crate::store::{Begun, Fate, LONGEST};

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Answers a request with its stored answer, or with what the inner service answers.
pub(crate) async fn answer<S, B, R>(
    settings: Arc<Settings>,
    mut inner: S,
    request: Request<B>,
) -> Result<Response<R>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Body<Error: Into<BoxError>> + From<Bytes>,
    R: Body<Error: Into<BoxError>> + From<Bytes>,
{
    if request.method().is_safe() {
        return inner.call(request).await;
    }
    let mut count = Count::begin();
    match course(&settings, inner, request, &mut count).await {
        Ok((outcome, response)) => {
            count.end(outcome);
            Ok(response)
        }
        Err(Ended::Problem(problem)) => {
            count.end(problem.code());
            Ok(problem.response(settings.documentation.as_deref()))
        }
        Err(Ended::Failed(error)) => {
            count.end(outcome::UNDONE);
            Err(error)
        }
    }
}

/// Why the client does not get the handler's answer.
enum Ended<E> {
    /// The layer answers itself.
    Problem(Problem),
    /// The inner service failed.
    Failed(E),
}

impl<E> From<Problem> for Ended<E> {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// Runs a request or finds its stored answer. Returns what came of it, with the response.
async fn course<S, B, R>(
    settings: &Settings,
    mut inner: S,
    request: Request<B>,
    count: &mut Count,
) -> Result<(&'static str, Response<R>), Ended<S::Error>>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Body<Error: Into<BoxError>> + From<Bytes>,
    R: Body<Error: Into<BoxError>> + From<Bytes>,
{
    let (mut request, identity) = identify(settings, request).await?;
    let begun = match open(settings, identity.as_ref()).await? {
        Opened::First(begun) => begun,
        Opened::Answered(answer) => return Ok((outcome::REPLAYED, replay(answer))),
    };
    let slot = Slot::new(begun);
    let _end = EndOnDrop(slot.clone());
    let key = identity.as_ref().map(|identity| identity.key.clone());
    request.extensions_mut().insert(Command { key, slot: slot.clone() });
    count.handles();
    let responded = inner.call(request).await;
    // The transaction is taken out, so that a task that still holds the command can no longer write.
    let begun = slot.end();
    let (parts, body) = match responded {
        Ok(response) => response.into_parts(),
        Err(error) => {
            let _ = roll_back(settings, begun, identity.as_ref()).await;
            return Err(Ended::Failed(error));
        }
    };
    let verdict = (settings.verdict)(&parts);
    match (verdict, identity) {
        (Verdict::Forget, identity) | (Verdict::Refuse, identity @ None) => {
            roll_back(settings, begun, identity.as_ref()).await?;
            Ok((outcome::UNDONE, Response::from_parts(parts, body)))
        }
        (Verdict::Commit, None) => {
            conclude(begun, async |begun| begun.commit("", false).await.map(drop)).await?;
            Ok((outcome::COMMITTED, Response::from_parts(parts, body)))
        }
        (Verdict::Commit | Verdict::Refuse, Some(identity)) => {
            let body = match collect(body, settings.max_response_bytes).await {
                Ok(body) => body,
                Err(unread) => {
                    let _ = roll_back(settings, begun, Some(&identity)).await;
                    tracing::error!(
                        error = full_text(&unread),
                        limit = settings.max_response_bytes,
                        "the body of a response could not be stored, and the request was rolled back; the \
                         limit is set by max_response_bytes",
                    );
                    return Err(Problem::Failed.into());
                }
            };
            let answer = settings.answer(&parts, &body);
            let undo = verdict == Verdict::Refuse;
            let kept = conclude(begun, async |begun| {
                keep(settings, begun, &identity, &answer, undo).await
            });
            match kept.await {
                Ok(()) => {
                    let outcome = if undo { outcome::REFUSED } else { outcome::COMMITTED };
                    Ok((outcome, Response::from_parts(parts, R::from(body))))
                }
                Err(Problem::Ended) => {
                    keep_ended(settings, &identity).await;
                    Err(Problem::Ended.into())
                }
                Err(problem) => Err(problem.into()),
            }
        }
    }
}

impl Settings {
    fn answer(&self, parts: &response::Parts, body: &Bytes) -> Answer {
        let connection = parts.headers.get_all(CONNECTION).iter();
        let named: Vec<&str> = connection
            .filter_map(|value| value.to_str().ok())
            .flat_map(|names| names.split(',').map(str::trim))
            .collect();
        let is_kept = |name: &HeaderName| {
            !self.dropped_headers.contains(name)
                && !named.iter().any(|named| named.eq_ignore_ascii_case(name.as_str()))
        };
        let kept = parts.headers.iter().filter(|(name, _)| is_kept(name));
        Answer {
            status: parts.status.as_u16(),
            headers: kept
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_owned()))
                .collect(),
            body: body.to_vec(),
        }
    }
}

/// Reads the request's body and finds out which request it is. A request without a key is not read.
async fn identify<B>(
    settings: &Settings,
    request: Request<B>,
) -> Result<(Request<B>, Option<Identity>), Problem>
where
    B: Body<Error: Into<BoxError>> + From<Bytes>,
{
    let Some(key) = key::key_of(request.headers()).map_err(Problem::Malformed)? else {
        let needs_one = matches!(*request.method(), Method::POST | Method::PATCH);
        let refused = settings.key_required && needs_one;
        return if refused { Err(Problem::Missing) } else { Ok((request, None)) };
    };
    let (parts, body) = request.into_parts();
    let scope = (settings.scope)(&parts).ok_or(Problem::NoScope)?;
    let limit = settings.max_request_bytes;
    let body = collect(body, limit).await.map_err(|unread| match unread {
        Unread::TooLarge => Problem::BodyTooLarge { limit },
        Unread::Broken(_) => Problem::BodyUnreadable,
    })?;
    let identity = Identity {
        scope: scope::storable(scope),
        key: key.into(),
        fingerprint: fingerprint::of_request(&parts, &body),
    };
    Ok((Request::from_parts(parts, B::from(body)), Some(identity)))
}

#[allow(clippy::large_enum_variant)]
enum Opened {
    /// The request must run, in this transaction.
    First(Begun),
    /// It was answered before.
    Answered(Answer),
}

async fn open(settings: &Settings, identity: Option<&Identity>) -> Result<Opened, Problem> {
    let known = async {
        let begun = settings.requests.begin(settings.longest_idle).await?;
        look(settings, begun, identity).await
    };
    match known.await {
        Ok((Some(begun), _)) => Ok(Opened::First(begun)),
        Ok((None, Known::Answered(answer))) => Ok(Opened::Answered(answer)),
        Ok((None, Known::Reused)) => Err(Problem::Reused),
        Ok((None, Known::InProgress | Known::New)) => Err(Problem::InProgress),
        Err(error) => {
            let error: sqlx::Error = error;
            tracing::error!(
                error = full_text(&error),
                "the key of a request could not be looked up"
            );
            Err(match fault_of(&error) {
                Fault::Environment | Fault::Conflict | Fault::Outage => Problem::Unavailable,
                _ => Problem::Failed,
            })
        }
    }
}

/// Looks up what is known of a request. Returns the transaction if the request must run in it.
async fn look(
    settings: &Settings,
    mut begun: Begun,
    identity: Option<&Identity>,
) -> Result<(Option<Begun>, Known), sqlx::Error> {
    let looked = within(LONGEST, "the database", async {
        match identity {
            Some(identity) => settings.requests.look(&mut begun, identity).await,
            None => settings.requests.mark(&mut begun).await.map(|()| Known::New),
        }
    });
    match looked.await {
        Ok(Ok(Known::New)) => Ok((Some(begun), Known::New)),
        Ok(Ok(known)) => {
            // Before the answer, because others wait for the connection and for the lock.
            begun.roll_back().await;
            Ok((None, known))
        }
        Ok(Err(error)) => Err(error),
        Err(late) => {
            begun.abandon();
            Err(late.into())
        }
    }
}

/// Stores the answer and commits. `undo`: without what the handler wrote.
async fn keep(
    settings: &Settings,
    mut begun: Begun,
    identity: &Identity,
    answer: &Answer,
    undo: bool,
) -> Result<(), InboxError> {
    let stored = async {
        if undo {
            begun.undo_part("pillarbox_request").await?;
        }
        begun.settle().await.map_err(InboxError::commit)?;
        let saved = limited(LONGEST, settings.requests.save(&mut begun.tx, identity, answer));
        saved.await.map_err(InboxError::commit)
    };
    match stored.await {
        Ok(()) => begun.commit("", false).await.map(drop),
        Err(InboxError::Ended { .. }) => Err(begun.ended().await),
        Err(error) => {
            begun.undo_behind();
            Err(error)
        }
    }
}

/// Stores an answer for a handler that ended the transaction. A repeated request gets it and does not run, because what
/// the handler wrote may have been kept.
async fn keep_ended(settings: &Settings, identity: &Identity) {
    let response: Response<Bytes> = Problem::Ended.response(settings.documentation.as_deref());
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter();
    let answer = Answer {
        status: parts.status.as_u16(),
        headers: headers.map(|(name, value)| (name.to_string(), value.as_bytes().into())).collect(),
        body: body.into(),
    };
    let kept = async {
        let begun = settings.requests.begin(settings.longest_idle).await;
        let known = look(settings, begun.map_err(InboxError::commit)?, Some(identity)).await;
        match known.map_err(InboxError::commit)? {
            (Some(begun), _) => keep(settings, begun, identity, &answer, false).await,
            (None, _) => Ok(()),
        }
    };
    if let Err(error) = kept.await {
        tracing::error!(
            error = full_text(&error),
            "an answer was not stored: the request runs again if it is repeated"
        );
    }
}

/// Stores the answer and commits, or returns what to answer instead.
async fn conclude<F>(begun: Option<Begun>, keep: impl FnOnce(Begun) -> F) -> Result<(), Problem>
where
    F: Future<Output = Result<(), InboxError>>,
{
    let Some(begun) = begun else {
        tracing::error!(error = %InboxError::InUse, "a request was rolled back");
        return Err(Problem::Failed);
    };
    let Err(error) = keep(begun).await else { return Ok(()) };
    // The answer's row exists, so another request has run meanwhile. See save.sql.
    if let InboxError::Commit(error) = &error
        && error.as_database_error().is_some_and(|error| error.table() == Some("inbox_request"))
    {
        return Err(Problem::InProgress);
    }
    tracing::error!(error = full_text(&error), "a request was not committed");
    Err(match (error.fault(), error) {
        (_, InboxError::Ended { .. }) => Problem::Ended,
        (Fault::Conflict, _) => Problem::Unavailable,
        (Fault::Environment, _) => Problem::Unknown,
        _ => Problem::Failed,
    })
}

/// Rolls back before the answer is given, so that a request that is repeated right after it is not told that this one
/// still runs. Fails if the handler ended the transaction, because what it wrote may have been kept.
async fn roll_back(
    settings: &Settings,
    begun: Option<Begun>,
    identity: Option<&Identity>,
) -> Result<(), Problem> {
    let Some(begun) = begun else { return Ok(()) };
    match begun.undo().await.map(Fate::ended) {
        Some(Some(error)) => {
            tracing::error!(error = full_text(&error), "a request was not undone");
            if let Some(identity) = identity {
                keep_ended(settings, identity).await;
            }
            Err(Problem::Ended)
        }
        Some(None) => Ok(()),
        None => {
            tracing::warn!(
                "the rollback of a request takes long; its key may be answered with 409 until it is done"
            );
            Ok(())
        }
    }
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("it is above the limit")]
    TooLarge,
    #[error("it broke off")]
    Broken(#[source] BoxError),
}

async fn collect<B>(body: B, limit: usize) -> Result<Bytes, Unread>
where
    B: Body<Error: Into<BoxError>>,
{
    // A body that announces its length is refused before its first byte.
    if body.size_hint().lower() > limit as u64 {
        return Err(Unread::TooLarge);
    }
    let collected = Limited::new(body, limit).collect().await;
    collected.map(|body| body.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
        true => Unread::TooLarge,
        false => Unread::Broken(error),
    })
}

fn replay<R: From<Bytes>>(answer: Answer) -> Response<R> {
    let mut headers = HeaderMap::new();
    for (name, value) in answer.headers {
        // They were valid headers when they were stored.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    let mut response = Response::new(R::from(Bytes::from(answer.body)));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    *response.headers_mut() = headers;
    response
}
