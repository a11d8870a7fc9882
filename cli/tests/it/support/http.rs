//! What an operator sees of a relay over HTTP.

use std::collections::BTreeMap;

use pillarbox_testkit::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{DEADLINE, Process};

pub struct Endpoint(pub String);

pub struct Answer {
    pub status: u16,
    pub kind: String,
    pub body: String,
}

impl Endpoint {
    /// The address that the relay says it listens on.
    pub async fn of(relay: &Process) -> Self {
        relay.until_said("http: /healthz").await;
        let lines = relay.lines.lock().unwrap();
        let line = lines.iter().find(|line| line.contains("http: /healthz")).unwrap();
        let address = line.split_once("address=").unwrap().1;
        Self(address.trim().to_owned())
    }

    pub async fn ask(&self, method: &str, path: &str) -> std::io::Result<Answer> {
        let mut stream = TcpStream::connect(&self.0).await?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.0);
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let header = |name: &str| {
            head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        Ok(Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            kind: header("content-type: "),
            body: body.to_owned(),
        })
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await.unwrap()
    }

    /// Waits until `/readyz` has this status, and returns what it says.
    pub async fn until_ready(&self, status: u16) -> serde_json::Value {
        eventually(&format!("/readyz to answer {status}"), DEADLINE, async || {
            let answer = self.ask("GET", "/readyz").await.map_err(|error| error.to_string())?;
            if answer.status == status { Ok(Some(answer.body)) } else { Err(answer.body) }
        })
        .await
        .map(|body| serde_json::from_str(&body).unwrap())
        .unwrap()
    }

    pub async fn scrape(&self) -> Scrape {
        Scrape::parse(&self.get("/metrics").await.body)
    }

    /// Waits until this number has this value.
    pub async fn until(&self, series: &str, value: f64) -> Scrape {
        let what = format!("{series} = {value}");
        #[allow(clippy::float_cmp, reason = "counts")]
        self.until_is(&what, |scrape| scrape.samples.get(series) == Some(&value)).await
    }

    /// Waits until the page is as wanted.
    pub async fn until_is(&self, what: &str, wanted: impl Fn(&Scrape) -> bool) -> Scrape {
        eventually(what, DEADLINE, async || {
            let scrape = self.scrape().await;
            if wanted(&scrape) { Ok(Some(scrape)) } else { Err(scrape.text) }
        })
        .await
        .unwrap()
    }
}

/// A series without its label `outbox`, which is another in every test.
fn without_outbox(series: &str) -> String {
    match series.split_once(",outbox=\"") {
        Some((before, rest)) => format!("{before}{}", rest.split_once('"').unwrap().1),
        None => series.to_owned(),
    }
}

/// A page of `/metrics`.
pub struct Scrape {
    pub text: String,
    pub help: BTreeMap<String, String>,
    pub kinds: BTreeMap<String, String>,
    /// By name and labels, as they stand there, without the outbox.
    pub samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Reads the Prometheus text format, and panics at what does not belong there.
    pub fn parse(text: &str) -> Self {
        let (mut help, mut kinds, mut samples) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for line in text.lines().filter(|line| !line.is_empty()) {
            let pair = |rest: &str| {
                let (name, said) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                (name.to_owned(), said.to_owned())
            };
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, said) = pair(rest);
                assert!(help.insert(name, said).is_none(), "twice: {line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, said) = pair(rest);
                assert!(kinds.insert(name, said).is_none(), "twice: {line}");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
                assert!(samples.insert(without_outbox(series), value).is_none(), "twice: {line}");
            }
        }
        for series in samples.keys() {
            let name = series.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|name| kinds.contains_key(*name)));
            assert!(kinds.contains_key(family.unwrap_or(name)), "no TYPE for {series}");
        }
        Self { text: text.to_owned(), help, kinds, samples }
    }

    pub fn get(&self, series: &str) -> f64 {
        *self.samples.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }
}
