//! `pillarbox replay`.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{self, Shop};

fn replay(shop: &Shop, arguments: &[&str]) -> (i32, String) {
    unconfirmed(shop, &[arguments, &["--yes"]].concat())
}

fn unconfirmed(shop: &Shop, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pillarbox"))
        .arg("replay")
        .args(arguments)
        .env("DATABASE_URL", shop.scope.database_url())
        .env("NATS_URL", shop.scope.nats_url())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn shipped_events_are_sent_again_under_their_ids_in_order() {
    let shop = Shop::open().await;
    assert!(replay(&shop, &["--since", "1h"]).1.contains("has never run"));
    let relay = shop.start(shop.config());
    shop.insert_many(1_200).await;
    shop.shipped().await;
    relay.stop().await;
    // Not shipped yet: the relay's to ship, not the replay's.
    shop.insert_one("1", "later").await;

    let (code, said) = replay(&shop, &["--since", "1h", "--dry-run"]);
    assert_eq!((code, said.as_str()), (0, "1200 events, positions 1 to 1200\n"));
    assert_eq!(shop.messages().await, 1_200, "only counted");
    let (code, said) = replay(&shop, &["--from-position", "201", "--generation", "g1"]);
    assert!(code == 0 && said.contains("1000 sent"), "{said}");
    let stored = shop.stored().await;
    assert_eq!(stored.len(), 2_200);
    let originals: Vec<_> = stored[200..1_200].to_vec();
    let by_key = |key: &str| {
        let of = |all: &[support::Stored]| -> Vec<_> {
            all.iter().filter(|s| s.key.as_deref() == Some(key)).map(|s| s.id.clone()).collect()
        };
        (of(&originals), of(&stored[1_200..]))
    };
    for key in 0..10 {
        let (first, again) = by_key(&key.to_string());
        assert_eq!(first, again, "key {key}");
    }

    // The same generation is the same message for the broker; another one is not.
    let (code, said) = replay(&shop, &["--from-position", "201", "--generation", "g1"]);
    assert!(code == 0 && said.contains("1000 sent"), "{said}");
    assert_eq!(shop.messages().await, 2_200);
    let (_, said) = replay(&shop, &["--since", "1h", "--key", "3", "--topic", &shop.topic()]);
    assert!(said.contains("120 sent"), "{said}");
    let stored = shop.stored().await;
    let ids: HashSet<_> = stored.iter().map(|stored| &stored.id).collect();
    assert_eq!((stored.len(), ids.len()), (2_320, 1_200));
}

#[tokio::test]
async fn a_replay_says_what_it_cannot_do() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    shop.insert_many(10).await;
    shop.shipped().await;
    relay.stop().await;
    assert_eq!(replay(&shop, &["--since", "2999-01-01"]), (0, "0 events\n".into()));
    assert_eq!(replay(&shop, &[]).0, 2, "a start must be given");
    let (code, said) = replay(&shop, &["--since", "teatime"]);
    assert!(code == 1 && said.contains("teatime"), "{said}");
    let (code, said) = replay(&shop, &["--since", "1h", "--generation", "a\nb"]);
    assert!(code == 1 && said.contains("line break"), "{said}");
    shop.jetstream().await.delete_stream(&shop.stream).await.unwrap();
    let (code, said) = replay(&shop, &["--since", "1h"]);
    assert!(code == 1 && said.contains("no stream takes the subject"), "{said}");
}

#[tokio::test]
async fn nothing_is_sent_again_before_somebody_says_yes() {
    let shop = Shop::open().await;
    let relay = shop.start(shop.config());
    shop.insert_many(60).await;
    shop.shipped().await;
    relay.stop().await;
    let (code, said) = unconfirmed(&shop, &["--since", "1h"]);
    assert!(code == 1 && said.contains("60 events") && said.contains("--yes"), "{said}");
    assert_eq!(shop.messages().await, 60);
    assert_eq!(unconfirmed(&shop, &["--since", "1h", "--dry-run"]).0, 0, "counting needs no yes");
    assert_eq!(replay(&shop, &["--since", "1h", "--rate", "0"]).0, 2);

    let begun = Instant::now();
    let (code, said) = replay(&shop, &["--since", "1h", "--rate", "20"]);
    assert!(code == 0 && said.contains("60 sent"), "{said}");
    assert!(begun.elapsed() >= Duration::from_millis(2_900), "60 at 20 per second take 3 s");
    assert_eq!(shop.messages().await, 120);
}
