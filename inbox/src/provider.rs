//! Answers of an HTTP provider that was asked through reqwest 0.13 (feature `reqwest`).

use reqwest::Response;
use reqwest::header::RETRY_AFTER;

use crate::error::HandlerError;

/// Tells an answer that a handler can use from one that makes it fail, and from no answer.
///
/// ```no_run
/// use pillarbox_inbox::provider::Classified;
/// use pillarbox_inbox::HandlerError;
///
/// # async fn charge(client: reqwest::Client, key: String) -> Result<(), HandlerError> {
/// let request = client.post("https://payments.example/charges").header("Idempotency-Key", key);
/// let receipt = request.send().await.classified()?.text().await?;
/// # Ok(())
/// # }
/// ```
pub trait Classified {
    /// The answer, if its status is below 400.
    ///
    /// # Errors
    /// For a status from 400, as in [`HandlerError::of_status`], with the answer's `Retry-After`. For no answer (no
    /// connection, a timeout), an [outage](crate::Fault::Outage). For any other failure, as by `?`. The error names the
    /// URL without its query, which may hold a secret.
    ///
    /// A plain `?` on an error of reqwest has the same classes, but knows nothing of `Retry-After`.
    fn classified(self) -> Result<Response, HandlerError>;
}

impl Classified for Response {
    fn classified(self) -> Result<Response, HandlerError> {
        let header = self.headers().get(RETRY_AFTER).cloned();
        let header = header.as_ref().and_then(|value| value.to_str().ok());
        self.error_for_status().map_err(|error| failed(error).retry_after_header(header))
    }
}

impl Classified for reqwest::Result<Response> {
    fn classified(self) -> Result<Response, HandlerError> {
        self.map_err(failed)?.classified()
    }
}

fn failed(mut error: reqwest::Error) -> HandlerError {
    if let Some(url) = error.url_mut() {
        url.set_query(None);
        url.set_fragment(None);
    }
    error.into()
}
