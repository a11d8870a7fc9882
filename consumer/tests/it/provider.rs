//! A provider that is away, slow, overloaded or busy delays events, and makes no dead letter of any.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::support::{DEADLINE, OrderPlaced, Shop, record};
use anyhow::Context as _;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use pillarbox_consumer::{ConsumerConfig, HandlingOrder};
use pillarbox_inbox::provider::Classified;
use pillarbox_inbox::{Handler, HandlerError, Received, Router, Tx};
use pillarbox_testkit::eventually;
use tokio::net::TcpListener;

/// How the provider is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Mood {
    Slow,
    /// 429 with a wait: in seconds for even orders, as a date for odd ones.
    Throttling,
    Unavailable,
    BadGateway,
    Well,
}

/// It answers orders by its mood. When it is well, every tenth order gets a 500: order 10 always, order 20 twice.
#[derive(Clone)]
struct Provider {
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<HashMap<(Mood, i64), u32>>>,
}

impl Provider {
    async fn charge(self, order: i64) -> (StatusCode, HeaderMap) {
        let mut headers = HeaderMap::new();
        let mood = *self.mood.lock().unwrap();
        let times = {
            let mut asked = self.asked.lock().unwrap();
            let times = asked.entry((mood, order)).or_default();
            *times += 1;
            *times
        };
        let status = match mood {
            Mood::Slow => std::future::pending().await,
            Mood::Throttling => {
                let date = SystemTime::now() + Duration::from_secs(2);
                let wait = match order % 2 {
                    0 => "1".to_owned(),
                    _ => httpdate::fmt_http_date(date),
                };
                headers.insert("retry-after", wait.parse().unwrap());
                StatusCode::TOO_MANY_REQUESTS
            }
            Mood::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Mood::BadGateway => StatusCode::BAD_GATEWAY,
            Mood::Well => match (order, times) {
                (10, _) | (20, ..=2) => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::CREATED,
            },
        };
        (status, headers)
    }

    /// Changes its mood, and waits until it was asked about each order this often.
    async fn be(&self, mood: Mood, orders: i64, times: u32) {
        *self.mood.lock().unwrap() = mood;
        let what = format!("{times} questions about each order");
        let asked = eventually(&what, DEADLINE, async || {
            let asked = self.asked.lock().unwrap();
            let of = |order| asked.get(&(mood, order)).copied().unwrap_or_default();
            match (1..=orders).map(of).min() {
                Some(least) if least >= times => Ok(Some(())),
                least => Err(format!("{mood:?}: {least:?}")),
            }
        });
        asked.await.unwrap();
    }

    async fn serve(self, address: SocketAddr) {
        let charge = move |Path(order): Path<i64>| self.clone().charge(order);
        let app = axum::Router::new().route("/charges/{order}", post(charge));
        let listener = TcpListener::bind(address).await.unwrap();
        axum::serve(listener, app).await.unwrap();
    }
}

/// Asks the provider about each order, in one of three ways.
struct Charge {
    client: reqwest::Client,
    provider: SocketAddr,
}

impl Charge {
    async fn told_by_anyhow(&self, order: i64) -> anyhow::Result<()> {
        let url = format!("http://{}/charges/{order}", self.provider);
        self.client.post(url).send().await?.error_for_status().context("the charge failed")?;
        Ok(())
    }
}

impl Handler<Received<OrderPlaced>> for Charge {
    async fn handle(&self, tx: &mut Tx, placed: Received<OrderPlaced>) -> Result<(), HandlerError> {
        let url = format!("http://{}/charges/{}", self.provider, placed.order);
        match placed.order % 3 {
            0 => drop(self.client.post(url).send().await.classified()?),
            1 => drop(self.client.post(url).send().await?.error_for_status()?),
            _ => self.told_by_anyhow(placed.order).await?,
        }
        record(tx, placed).await
    }
}

#[tokio::test]
async fn a_provider_in_trouble_makes_no_dead_letter_but_of_the_500s_that_stay() {
    let with = async |order| {
        let shop = Shop::open().await;
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let provider = Provider { mood: Arc::new(Mutex::new(Mood::Slow)), asked: Arc::default() };
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_millis(150));
        let handler = Charge { client: client.build().unwrap(), provider: address };
        // Ten minutes with the waits of production (100 ms to 30 s) are as many attempts as some seconds with these.
        let config = ConsumerConfig { order, ..shop.config() };
        let started = shop.start(config, Router::new().on(handler));

        // At first nobody listens. Three attempts would be the last.
        for order in 1..=20 {
            shop.send(&shop.event(order, 1)).await;
        }
        let away = "select count(*) from pillarbox.inbox_failure where outages > 6";
        shop.until(away, 20).await;
        let serving = tokio::spawn(provider.clone().serve(address));
        for (mood, times) in [
            (Mood::Slow, 5),
            (Mood::Unavailable, 10),
            (Mood::BadGateway, 10),
            (Mood::Throttling, 4),
        ] {
            provider.be(mood, 20, times).await;
            let counted = "select count(*) from pillarbox.inbox_failure where attempts > 0";
            assert_eq!(shop.number(counted).await, 0, "{mood:?}");
            assert_eq!(shop.number("select count(*) from pillarbox.inbox_dead_letter").await, 0);
        }
        provider.be(Mood::Well, 20, 1).await;
        shop.until("select count(*) from effects", 19).await;
        shop.until("select count(*) from pillarbox.inbox_dead_letter", 1).await;
        shop.drained().await;
        started.stop().await;
        serving.abort();
        let letters = "select count(*) from pillarbox.inbox_dead_letter \
                       where key = '10' and reason = 'attempts' and attempts = 3 and error like '%500%'";
        assert_eq!(shop.number(letters).await, 1);
        let effects = "select count(distinct order_id) from effects where order_id <> 10";
        assert_eq!(shop.number(effects).await, 19);
        assert_eq!(shop.number("select count(*) from pillarbox.inbox_failure").await, 0);
    };
    tokio::join!(with(HandlingOrder::Key), with(HandlingOrder::None));
}

#[tokio::test]
async fn a_provider_that_asks_for_no_wait_is_asked_with_the_usual_backoff() {
    struct Busy;
    impl Handler<Received<OrderPlaced>> for Busy {
        async fn handle(&self, _: &mut Tx, _: Received<OrderPlaced>) -> Result<(), HandlerError> {
            Err(HandlerError::of_status(429, Some("0")))
        }
    }
    let with = async |order| {
        let shop = Shop::open().await;
        // So many attempts without a wait take far less than a second.
        let config = ConsumerConfig {
            order,
            backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            ..shop.config()
        };
        let started = shop.start(config, Router::new().on(Busy));
        shop.send(&shop.event(1, 1)).await;
        shop.until("select count(*) from pillarbox.inbox_failure where outages >= 6", 1).await;
        let lasted = "select (extract(epoch from last_failed_at - first_failed_at) * 1000)::bigint \
                      from pillarbox.inbox_failure";
        // 50, 100, 200, 400 and 500 ms, and at least that with the jitter.
        assert!(shop.number(lasted).await >= 1_000);
        started.stop().await;
    };
    tokio::join!(with(HandlingOrder::Key), with(HandlingOrder::None));
}
