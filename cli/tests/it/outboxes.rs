//! Several outboxes in one `pillarbox.toml`.

use crate::support::{Process, Shop};

#[tokio::test]
async fn one_process_ships_every_outbox_of_its_file() {
    let (first, second) = tokio::join!(Shop::open(), Shop::open());
    first.insert_many(20).await;
    second.insert_many(30).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pillarbox.toml");
    let text = format!(
        "nats_url = {:?}\nlease_ms = 2000\nhttp = \"off\"\n\
         [[outbox]]\ndatabase_url = {:?}\n[[outbox]]\ndatabase_url = {:?}\norder = \"strict\"\n",
        first.scope.nats_url(),
        first.scope.database_url(),
        second.scope.database_url()
    );
    std::fs::write(&file, text).unwrap();
    let mut relay = Process::run(&["relay"], &[("PILLARBOX_CONFIG", file.to_str().unwrap())]);
    first.shipped().await;
    second.shipped().await;
    assert_eq!((first.stored().await.len(), second.stored().await.len()), (20, 30));
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ended().await, 0);
}
