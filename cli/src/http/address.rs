//! The address that is listened on, as soon as that can be.

use std::io;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use pillarbox_relay::Notice;
use tokio::net::TcpListener;

use super::HttpError;

const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait is twice this, with jitter.
const LONGEST_WAIT: Duration = Duration::from_millis(2_500);

/// A host that is known, and a port.
pub(super) struct Address(String);

impl Address {
    /// Fails if the host is unknown: no waiting mends a misspelt name.
    pub(super) async fn find(address: &str) -> Result<Self, HttpError> {
        let unknown = |source| HttpError::Unknown { address: address.to_owned(), source };
        let mut found = tokio::net::lookup_host(address).await.map_err(unknown)?;
        match found.next() {
            Some(_) => Ok(Self(address.to_owned())),
            None => Err(unknown(io::ErrorKind::NotFound.into())),
        }
    }

    /// Listens there, if not at once, then later: another process may hold the port, this machine may not have the
    /// address yet, or the system may not allow the port. Each is said once, in the log and through `notice`.
    pub(super) async fn listen(self, notice: &Notice) -> TcpListener {
        let mut waits = ExponentialBuilder::new()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(LONGEST_WAIT)
            .with_jitter()
            .without_max_times()
            .build();
        let mut said = None;
        loop {
            match self.bind().await {
                Ok((listener, bound)) => {
                    notice.set(None);
                    tracing::info!(address = %bound, "http: /healthz, /readyz, /metrics");
                    return listener;
                }
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(
                            http = self.0,
                            error,
                            "no endpoints: this address cannot be listened on; the relay ships and tries again (--http, PILLARBOX_HTTP)"
                        );
                        notice.set(Some(format!(
                            "no endpoints: http = {:?} cannot be listened on: {error}",
                            self.0
                        )));
                        said = Some(error);
                    }
                    tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
                }
            }
        }
    }

    async fn bind(&self) -> io::Result<(TcpListener, std::net::SocketAddr)> {
        let listener = TcpListener::bind(&self.0).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    }
}
