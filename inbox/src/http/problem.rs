//! The layer's own answers, as problem details (RFC 9457).

use bytes::Bytes;
use http::header::{CONTENT_LANGUAGE, CONTENT_TYPE, LINK, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::http::key::BadKey;

/// Only the layer's own answers have this header. Its value is the problem's code.
const PROBLEM: HeaderName = HeaderName::from_static("idempotency-problem");

/// Why the layer itself answers a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Missing,
    Malformed(BadKey),
    NoScope,
    BodyTooLarge {
        limit: usize,
    },
    BodyUnreadable,
    InProgress,
    Reused,
    /// The database is not available, or has rolled the transaction back through no fault of the request.
    Unavailable,
    /// The answer to the commit was lost.
    Unknown,
    /// What the handler wrote could not be committed. The log says why.
    Failed,
    /// The handler ended the transaction. The log says so.
    Ended,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Self::Missing | Self::Malformed(_) | Self::BodyUnreadable => StatusCode::BAD_REQUEST,
            Self::NoScope => StatusCode::FORBIDDEN,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::InProgress => StatusCode::CONFLICT,
            Self::Reused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable | Self::Unknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed | Self::Ended => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The code of the problem, for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Missing => "key-missing",
            Self::Malformed(_) => "key-malformed",
            Self::NoScope => "no-scope",
            Self::BodyTooLarge { .. } => "body-too-large",
            Self::BodyUnreadable => "body-unreadable",
            Self::InProgress => "in-progress",
            Self::Reused => "key-reused",
            Self::Unavailable => "unavailable",
            Self::Unknown => "outcome-unknown",
            Self::Ended => "transaction-ended",
            Self::Failed => "failed",
        }
    }

    fn title(&self) -> &'static str {
        match self {
            Self::Missing => "Idempotency-Key is missing",
            Self::Malformed(_) => "Idempotency-Key is malformed",
            Self::NoScope => "Idempotency-Key belongs to nobody",
            Self::BodyTooLarge { .. } => "Request body is too large",
            Self::BodyUnreadable => "Request body could not be read",
            Self::InProgress => "A request is outstanding for this Idempotency-Key",
            Self::Reused => "Idempotency-Key is already used",
            Self::Unavailable => "The request could not be processed now",
            Self::Unknown => "It is not known whether the request took effect",
            Self::Failed | Self::Ended => "The request failed",
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Missing => "This operation requires an Idempotency-Key header, so that it can be repeated \
                              safely. Send a new random value, such as a UUID, for each new request."
                .into(),
            Self::Malformed(why) => format!("{why}."),
            Self::NoScope => "The service cannot tell whose key this is. Send the request with credentials \
                              that it accepts."
                .into(),
            Self::BodyTooLarge { limit } => {
                format!("At most {limit} bytes are accepted. Send a smaller body.")
            }
            Self::BodyUnreadable => "The body ended early, and nothing was done. Send the whole request \
                                     again."
                .into(),
            Self::InProgress => "A request with the same key is being processed. Send this one again, \
                                  unchanged, to get its answer."
                .into(),
            Self::Reused => "The key was used for a request with another method, path, query or body. A new \
                             request needs a new key; a repeat must send the same bytes."
                .into(),
            Self::Unavailable => "Nothing was done. Send the request again with the same key.".into(),
            Self::Unknown => "Send the request again with the same key: it takes effect once.".into(),
            Self::Failed => "What it did was undone. With the same key it can be sent again.".into(),
            Self::Ended => "Because of a fault in the service, part of it may have been done. The same \
                            request with the same key gets this answer again, and does not run."
                .into(),
        }
    }

    /// Whether the client should soon repeat the request with the same key.
    fn is_passing(&self) -> bool {
        matches!(self, Self::InProgress | Self::Unavailable | Self::Unknown)
    }

    /// The response. `documentation` is the URL where the API documents its keys.
    pub(crate) fn response<B: From<Bytes>>(&self, documentation: Option<&str>) -> Response<B> {
        let status = self.status();
        let code = self.code();
        let problem_type = match documentation {
            Some(url) => url.to_owned(),
            None => format!("urn:pillarbox:idempotency:{code}"),
        };
        let problem = json!({
            "type": problem_type,
            "code": code,
            "title": self.title(),
            "status": status.as_u16(),
            "detail": self.detail(),
        });
        let mut response = Response::new(B::from(Bytes::from(problem.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
        headers.insert(PROBLEM, HeaderValue::from_static(code));
        if self.is_passing() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let link =
            documentation.map(|url| HeaderValue::try_from(format!("<{url}>; rel=\"describedby\"")));
        if let Some(Ok(link)) = link {
            headers.insert(LINK, link);
        }
        response
    }
}
