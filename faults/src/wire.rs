//! The broker's protocol, byte by byte. It can send messages that no client library would send, and read messages that
//! no client library would accept.
//!
//! A client library ends its connection at the first header that it cannot parse. Here the lengths in a frame say where
//! the frame ends, whatever it holds.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the next message of a stream may take.
const NEXT: Duration = Duration::from_secs(20);

/// A connection to a nats-server. After an error it cannot be used any more.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: BufReader<TcpStream>,
    inbox: String,
    requests: u64,
    /// Messages that came before the awaited answer.
    early: VecDeque<Frame>,
}

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Frame {
    subject: String,
    reply: String,
    /// The header block with `NATS/1.0` and the empty line at the end; empty if the message has no headers.
    headers: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// A message in a stream.
#[derive(Debug)]
pub(crate) struct InStream {
    pub(crate) sequence: u64,
    /// When it was stored, in microseconds since 1970.
    pub(crate) at: i64,
    pub(crate) message: Frame,
}

impl Frame {
    /// The value of a header. Only its ASCII characters are certain to be as they were sent.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.headers);
        let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
        let found = pairs.find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }
}

impl Wire {
    /// Connects to the first of these ports of 127.0.0.1 that answers.
    pub(crate) async fn connect(ports: &[u16]) -> anyhow::Result<Self> {
        let mut last = anyhow::anyhow!("no port to connect to");
        for port in ports {
            match timeout(PATIENCE, Self::connect_to(*port)).await {
                Ok(Ok(wire)) => return Ok(wire),
                Ok(Err(error)) => last = error,
                Err(_) => last = anyhow::anyhow!("port {port} does not answer in time"),
            }
        }
        Err(last)
    }

    async fn connect_to(port: u16) -> anyhow::Result<Self> {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
        stream.read_line(&mut String::new()).await?;
        let inbox = format!("_INBOX.{}", uuid::Uuid::now_v7().simple());
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true}}\r\nSUB {inbox}.* 1\r\nSUB {inbox}-all 2\r\nPING\r\n"
        );
        stream.write_all(hello.as_bytes()).await?;
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line).await? > 0, "the server hung up");
            match line.trim_end() {
                "PONG" => break,
                error if error.starts_with("-ERR") => bail!("the server says {error}"),
                _ => {}
            }
        }
        Ok(Self { stream, inbox, requests: 0, early: VecDeque::new() })
    }

    /// Publishes to a stream, and returns what the server answers. `headers` are sent as they are.
    pub(crate) async fn publish(
        &mut self,
        subject: &str,
        headers: Option<&[u8]>,
        payload: Vec<u8>,
    ) -> anyhow::Result<Answer> {
        let answer = timeout(PATIENCE, self.request(subject, headers, payload)).await;
        let answer = answer.context("no answer in time")??;
        if answer.payload.is_empty() {
            // No stream takes the subject.
            return Ok(Answer::Refused(String::from_utf8_lossy(&answer.headers).trim().to_owned()));
        }
        let told: Value = serde_json::from_slice(&answer.payload)?;
        Ok(match told.get("error") {
            Some(error) => Answer::Refused(error.to_string()),
            None => Answer::Stored,
        })
    }

    /// What a stream holds now, from its first message on.
    pub(crate) async fn all_of(&mut self, stream: &str) -> anyhow::Result<Vec<InStream>> {
        let info = self.api(&format!("STREAM.INFO.{stream}"), &json!({})).await?;
        let held =
            info["state"]["messages"].as_u64().context("the stream's info has no message count")?;
        let mut all = Vec::new();
        if held == 0 {
            return Ok(all);
        }
        // A consumer delivers messages unchanged to a subject to which somebody has subscribed.
        let to = format!("{}-all", self.inbox);
        let config = json!({
            "deliver_subject": to,
            "deliver_policy": "all",
            "ack_policy": "none",
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": 5_000_000_000_u64,
        });
        let consumer = json!({ "stream_name": stream, "config": config });
        self.api(&format!("CONSUMER.CREATE.{stream}"), &consumer).await?;
        // There are fewer messages if some were removed meanwhile.
        let mut last = false;
        while !last && (all.len() as u64) < held {
            let next = match self.early.pop_front() {
                Some(early) => early,
                None => timeout(NEXT, self.next()).await.context("the stream ends early")??,
            };
            let place: Vec<&str> = next.reply.split('.').collect();
            // A message arrives with the subject to which it was published. Its reply subject contains its place.
            let ["$JS", "ACK", .., sequence, _, nanoseconds, pending] = place[..] else {
                continue;
            };
            let (sequence, at) = (sequence.parse()?, nanoseconds.parse::<i64>()? / 1_000);
            last = pending == "0";
            all.push(InStream { sequence, at, message: next });
        }
        Ok(all)
    }

    async fn api(&mut self, question: &str, asked: &Value) -> anyhow::Result<Value> {
        let subject = format!("$JS.API.{question}");
        let request = self.request(&subject, None, asked.to_string().into_bytes());
        let answer = timeout(NEXT, request).await.context("no answer in time")??;
        let answer: Value = serde_json::from_slice(&answer.payload)
            .with_context(|| format!("nobody answers {question}"))?;
        ensure!(answer.get("error").is_none(), "{question}: {}", answer["error"]);
        Ok(answer)
    }

    /// Sends a message and waits for what is sent back.
    async fn request(
        &mut self,
        subject: &str,
        headers: Option<&[u8]>,
        payload: Vec<u8>,
    ) -> anyhow::Result<Frame> {
        self.requests += 1;
        let reply = format!("{}.{}", self.inbox, self.requests);
        let mut said = match headers {
            Some(headers) => {
                let (of_headers, of_all) = (headers.len(), headers.len() + payload.len());
                let mut said =
                    format!("HPUB {subject} {reply} {of_headers} {of_all}\r\n").into_bytes();
                said.extend_from_slice(headers);
                said
            }
            None => format!("PUB {subject} {reply} {}\r\n", payload.len()).into_bytes(),
        };
        said.extend_from_slice(&payload);
        said.extend_from_slice(b"\r\n");
        self.stream.write_all(&said).await?;
        loop {
            let next = self.next().await?;
            if next.subject == reply {
                return Ok(next);
            }
            self.early.push_back(next);
        }
    }

    /// The next message that the server sends.
    async fn next(&mut self) -> anyhow::Result<Frame> {
        loop {
            let mut line = Vec::new();
            ensure!(self.stream.read_until(b'\n', &mut line).await? > 0, "the server hung up");
            let line = String::from_utf8_lossy(&line);
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let (subject, reply, of_headers, of_all) = match words[..] {
                ["MSG", subject, _, of_all] => (subject, "", "0", of_all),
                ["MSG", subject, _, reply, of_all] => (subject, reply, "0", of_all),
                ["HMSG", subject, _, of_headers, of_all] => (subject, "", of_headers, of_all),
                ["HMSG", subject, _, reply, of_headers, of_all] => {
                    (subject, reply, of_headers, of_all)
                }
                ["PING"] => {
                    self.stream.write_all(b"PONG\r\n").await?;
                    continue;
                }
                ["-ERR", ..] => bail!("the server says {}", line.trim_end()),
                _ => continue,
            };
            let (of_headers, of_all): (usize, usize) = (of_headers.parse()?, of_all.parse()?);
            let mut headers = vec![0; of_headers];
            let mut payload = vec![0; of_all.checked_sub(of_headers).context("no such length")?];
            self.stream.read_exact(&mut headers).await?;
            self.stream.read_exact(&mut payload).await?;
            self.stream.read_exact(&mut [0; 2]).await?;
            let (subject, reply) = (subject.to_owned(), reply.to_owned());
            return Ok(Frame { subject, reply, headers, payload });
        }
    }
}

/// The result of publishing a message to a stream.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The stream holds it.
    Stored,
    /// The stream does not hold it, for this reason.
    Refused(String),
}
