//! The address of the endpoints. The program listens on it as soon as it can.

use std::io;
use std::time::Duration;

use pillarbox_relay::Notice;
use pillarbox_store::Backoff;
use pillarbox_store::limit::within;
use tokio::net::TcpListener;

const FIRST_WAIT: Duration = Duration::from_millis(100);

/// How long the look-up of a host's name may take.
const LOOK_UP: Duration = Duration::from_secs(10);

/// A host and a port, in a form that the settings have checked.
pub(super) struct Address(String);

impl Address {
    pub(super) fn new(address: &str) -> Self {
        Self(address.to_owned())
    }

    /// Listens on the address, and tries again until it can. Another process may hold the port, this machine may not
    /// have the address yet, the system may not allow the port, or the host's name may not be found, for example while
    /// no name server answers. The log and `notice` report each reason once.
    pub(super) async fn listen(self, notice: &Notice) -> TcpListener {
        let mut backoff = Backoff::starting_at(FIRST_WAIT);
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
                    tokio::time::sleep(backoff.wait()).await;
                }
            }
        }
    }

    async fn bind(&self) -> io::Result<(TcpListener, std::net::SocketAddr)> {
        let found = within(LOOK_UP, "the name server", tokio::net::lookup_host(&self.0)).await;
        let addresses: Vec<_> =
            found.map_err(|late| io::Error::new(io::ErrorKind::TimedOut, late))??.collect();
        let listener = TcpListener::bind(&*addresses).await?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    }
}
