//! What an HTTP provider answers, or does not answer, says whether the event is to blame.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use pillarbox_inbox::provider::Classified;
use pillarbox_inbox::{Fault, HandlerError, InboxError};
use tokio::net::TcpListener;

/// `/status/<status>?secret` with the header `Retry-After: <wait>` if the request has a header `wait`; `/slow` does not
/// answer.
async fn provider() -> SocketAddr {
    async fn status(Path(status): Path<u16>, asked: HeaderMap) -> (StatusCode, HeaderMap) {
        let mut headers = HeaderMap::new();
        if let Some(wait) = asked.get("wait") {
            headers.insert("retry-after", wait.clone());
        }
        (StatusCode::from_u16(status).unwrap(), headers)
    }
    let app = Router::new()
        .route("/status/{status}", get(status))
        .route("/slow", get(std::future::pending::<()>));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap()
}

#[derive(Debug, thiserror::Error)]
#[error("the charge failed")]
struct Own(#[from] reqwest::Error);

/// One request, told in every way that a handler has.
async fn ask(url: &str) -> [HandlerError; 4] {
    async fn plain(url: &str) -> Result<(), HandlerError> {
        client().get(url).send().await?.error_for_status()?;
        Ok(())
    }
    async fn own(url: &str) -> Result<(), Own> {
        client().get(url).send().await?.error_for_status()?;
        Ok(())
    }
    async fn anyhow(url: &str) -> anyhow::Result<()> {
        client().get(url).send().await?.error_for_status()?;
        Ok(())
    }
    let classified = client().get(url).send().await.classified();
    [
        classified.unwrap_err(),
        plain(url).await.unwrap_err(),
        own(url).await.unwrap_err().into(),
        anyhow(url).await.unwrap_err().into(),
    ]
}

#[tokio::test]
async fn no_answer_is_an_outage_and_an_answer_is_what_its_status_says() {
    let address = provider().await;
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, fault) in [
        (format!("http://{away}/"), Fault::Outage),
        (format!("http://{address}/slow"), Fault::Outage),
        ("http://nobody.invalid/".to_owned(), Fault::Outage),
        (format!("http://{address}/status/408"), Fault::Outage),
        (format!("http://{address}/status/429"), Fault::Outage),
        (format!("http://{address}/status/502"), Fault::Outage),
        (format!("http://{address}/status/503"), Fault::Outage),
        (format!("http://{address}/status/504"), Fault::Outage),
        (format!("http://{address}/status/500"), Fault::Transient),
        (format!("http://{address}/status/400"), Fault::Permanent),
        (format!("http://{address}/status/404"), Fault::Permanent),
        (format!("http://{address}/status/422"), Fault::Permanent),
    ] {
        for error in ask(&url).await {
            assert_eq!(error.fault(), fault, "{url}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_hangs_up_may_have_been_brought_down_by_the_event() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    for error in ask(&format!("http://{address}/")).await {
        assert_eq!(error.fault(), Fault::Transient, "{error:?}");
    }
}

#[tokio::test]
async fn the_wait_that_a_provider_asks_for_is_heeded_in_both_forms() {
    let url = format!("http://{}/status/429?key=secret", provider().await);
    let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
    for (header, waits) in [("20", Some(20..=20)), (soon.as_str(), Some(20..=30)), ("later", None)]
    {
        let answer = client().get(&url).header("wait", header).send().await;
        let error = InboxError::handler(answer.classified().unwrap_err());
        assert_eq!(error.fault(), Fault::Outage);
        match (waits, error.retry_after()) {
            (Some(waits), Some(wait)) => assert!(waits.contains(&wait.as_secs()), "{wait:?}"),
            (waits, wait) => assert_eq!((waits, wait), (None, None)),
        }
    }
}

#[tokio::test]
async fn an_answer_that_can_be_used_is_handed_on_and_the_text_of_a_failure_keeps_secrets() {
    let address = provider().await;
    for status in [200, 204, 304] {
        let url = format!("http://{address}/status/{status}");
        let answer = client().get(url).send().await.classified().unwrap();
        assert_eq!(answer.status().as_u16(), status);
    }
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for url in [format!("http://{address}/status/503"), format!("http://{away}/status/503")] {
        let failed = client().get(format!("{url}?key=secret#secret")).send().await.classified();
        let text = format!("{:?}", failed.unwrap_err());
        assert!(text.contains(&url) || text.contains("/status/503"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
