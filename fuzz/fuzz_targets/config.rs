//! `pillarbox.toml`. It is either refused, by an error without its secrets, or printed so that it can be loaded again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pillarbox_cli::config::{Settings, Sources};

/// A secret that a value of the corpus may contain.
const SECRET: &str = "q7Hunter2";

fn load(text: &str) -> Result<Settings, String> {
    let path = std::env::temp_dir().join(format!("pillarbox-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("a temporary file");
    let sources = Sources { file: Some(path), ..Sources::default() };
    Settings::load(&sources).map_err(|error| format!("{error} {error:?}"))
}

fuzz_target!(|text: &str| {
    match load(text) {
        Ok(settings) => {
            let printed = settings.print();
            // The corpus may also contain it in another text, or in a key that the error names.
            if only_in_secrets(text) {
                assert!(!printed.contains(SECRET), "{printed}");
                assert!(!format!("{settings:?}").contains(SECRET));
            }
            if !printed.contains("***") {
                assert_eq!(
                    load(&printed).expect("what was printed can be loaded").print().lines().count(),
                    printed.lines().count()
                );
            }
        }
        Err(error) if only_in_secrets(text) => assert!(!error.contains(SECRET), "{error}"),
        Err(_) => {}
    }
});

/// Whether the secret is only in lines that set a token or a password, and there as the whole value.
fn only_in_secrets(text: &str) -> bool {
    text.contains(SECRET)
        && text
            .lines()
            .filter(|line| line.contains(SECRET))
            .all(|line| ["token = \"q7Hunter2\"", "password = \"q7Hunter2\""].contains(&line))
}
