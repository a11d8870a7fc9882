//! What a response means for the transaction.

use http::StatusCode;

/// What becomes of the handler's writes, and of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The writes are committed, and the answer is stored with them.
    Commit,
    /// The writes are undone, but the answer is stored: a repeat gets the same refusal.
    Refuse,
    /// The writes are undone and nothing is stored: a repeat runs again.
    Forget,
}

impl Verdict {
    /// The usual one.
    ///
    /// - Below 400: [`Commit`](Self::Commit).
    /// - 4xx: [`Refuse`](Self::Refuse). The answer was given, and stays given: were it forgotten, a copy of the
    ///   request that a proxy had held back could succeed after the client was told that it had failed. A client
    ///   that corrects its request sends a new key.
    /// - 4xx that speak of the caller or of the moment (401, 403, 407, 408, 421, 423, 425, 429):
    ///   [`Forget`](Self::Forget). The same request may be welcome later.
    /// - 5xx: [`Forget`](Self::Forget).
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            401 | 403 | 407 | 408 | 421 | 423 | 425 | 429 => Self::Forget,
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
        for status in [200, 201, 204, 303] {
            assert_eq!(of(status), Verdict::Commit, "{status}");
        }
        for status in [400, 402, 404, 409, 410, 422] {
            assert_eq!(of(status), Verdict::Refuse, "{status}");
        }
        for status in [401, 403, 408, 425, 429, 500, 502, 503, 599] {
            assert_eq!(of(status), Verdict::Forget, "{status}");
        }
    }
}
