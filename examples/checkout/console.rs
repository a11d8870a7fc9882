//! The operator's page on the shop's five databases, and some trouble to look at.

use std::net::SocketAddr;

use anyhow::Context;
use pillarbox_console::{Access, Console, Place, Tokens};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::service::Service;
use crate::shop::Shop;

/// Where the page is, unless something else is there.
const ADDRESS: &str = "127.0.0.1:9470";

/// Serves the page, with a token for an operator, and prints how to get in.
pub async fn serve(shop: &Shop) -> anyhow::Result<JoinHandle<()>> {
    let places: Vec<Place> = Service::ALL
        .into_iter()
        .map(|service| Place::new(service.name(), &shop.addresses.database(service), "pillarbox"))
        .collect::<Result<_, _>>()?;
    let token = format!("{:032x}", rand::random::<u128>());
    let tokens = Tokens::parse(&format!("operator you {token}"))?;
    let console = Console::new(places, Access::Tokens(tokens)).show_payloads(true);
    let listener = match TcpListener::bind(ADDRESS).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind("127.0.0.1:0").await.context("the page has no address")?,
    };
    println!("\nThe operator's page: http://{}/   token: {token}\n", listener.local_addr()?);
    let service = console.router().into_make_service_with_connect_info::<SocketAddr>();
    Ok(tokio::spawn(async move {
        // It ends with the program.
        let _ = axum::serve(listener, service).await;
    }))
}

/// Publishes orders that no service can read, as a bad deploy would.
pub async fn make_trouble(shop: &Shop) -> anyhow::Result<()> {
    for (payload, count) in [("{\"order\": \"twelve\"}", 40), ("{\"cents\": 1200", 7)] {
        sqlx::query(
            "insert into pillarbox.outbox (event_type, topic, key, payload) \
             select 'order.placed', 'orders.placed', 'bad-' || i, convert_to($1, 'utf8') from generate_series(1, $2) i",
        )
        .bind(payload)
        .bind(count)
        .execute(shop.pool(Service::Orders))
        .await?;
    }
    Ok(())
}
