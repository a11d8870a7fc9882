//! What a response means for the transaction.

use http::StatusCode;

/// What becomes of the handler's writes and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The writes are committed, and the answer is stored with them.
    Commit,
    /// The writes are undone, but the answer is stored, so a repeated request gets the same refusal.
    Refuse,
    /// The writes are undone and nothing is stored, so a repeated request runs again.
    Forget,
}

impl Verdict {
    /// The verdict by default, from the status.
    ///
    /// - 2xx, and 3xx except 307 and 308: [`Commit`](Self::Commit).
    /// - 4xx that judge the request itself, such as 400, 402, 413, 415 and 422: [`Refuse`](Self::Refuse). The answer
    ///   was given and must stay the same. Otherwise a copy of the request that a proxy had held back could succeed
    ///   after the client was told that it had failed. A client that corrects its request sends a new key.
    /// - 4xx that concern the caller, the moment or the state of something else: [`Forget`](Self::Forget). The same
    ///   request may succeed later: somebody logs in (401, 403, 407), the route is deployed (404, 405), a conflict is
    ///   resolved (409, 412, 423, 424), time passes (408, 421, 425, 426, 428, 429).
    /// - 307 and 308 send the client elsewhere with the same request, so nothing was done here:
    ///   [`Forget`](Self::Forget).
    /// - 5xx: [`Forget`](Self::Forget).
    ///
    /// [`IdempotencyLayer::verdict`](crate::http::IdempotencyLayer::verdict) takes another function, which can fall
    /// back on this one.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            307 | 308 => Self::Forget,
            401 | 403 | 404 | 405 | 407 | 408 | 409 | 412 | 421 | 423 | 424 | 425 | 426 | 428
            | 429 => Self::Forget,
            ..400 => Self::Commit,
            400..=499 => Self::Refuse,
            _ => Self::Forget,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn success_is_kept_a_refusal_is_told_again_and_an_error_is_forgotten() {
        let of = |status: u16| Verdict::of_status(StatusCode::from_u16(status).unwrap());
        for status in [200, 201, 204, 301, 302, 303] {
            assert_eq!(of(status), Verdict::Commit, "{status}");
        }
        for status in [400, 402, 406, 410, 411, 413, 414, 415, 417, 422, 431, 451] {
            assert_eq!(of(status), Verdict::Refuse, "{status}");
        }
        for status in [307, 308, 401, 403, 404, 405, 408, 409, 412, 425, 429, 500, 502, 503, 599] {
            assert_eq!(of(status), Verdict::Forget, "{status}");
        }
    }
}
