//! The documentation as a book: every page is in it, and no link leads nowhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages below a folder.
fn pages(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|end| end == "md") {
            found.insert(path);
        }
    }
}

/// The targets of the links of a page, without those in code.
fn links(text: &str) -> Vec<String> {
    let mut in_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            // Every other piece between backticks is code.
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    let targets = prose.split("](").skip(1);
    targets.filter_map(|rest| Some(rest.split_once(')')?.0.split_whitespace().collect())).collect()
}

/// The anchors of a page's headings, as GitHub and mdbook make them.
fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// What a link leads to, without `..`.
fn target(page: &Path, link: &str) -> PathBuf {
    let mut path = PathBuf::new();
    for part in page.parent().unwrap().join(link).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}

/// What is wrong with the relative links of a page.
fn faults(page: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let path = if file.is_empty() { page.to_owned() } else { target(page, file) };
        if !path.exists() {
            faults.push(format!("{}: {link} does not exist", page.display()));
        } else if !anchor.is_empty()
            && path.extension().is_some_and(|end| end == "md")
            && !anchors(&fs::read_to_string(&path).unwrap()).iter().any(|known| known == anchor)
        {
            faults.push(format!("{}: {link} names no heading", page.display()));
        }
    }
    faults
}

#[test]
fn every_page_is_in_the_book_once() {
    let docs = root().join("docs");
    let summary = docs.join("SUMMARY.md");
    let listed: Vec<PathBuf> = links(&fs::read_to_string(&summary).unwrap())
        .iter()
        .map(|link| target(&summary, link))
        .collect();
    let mut there = BTreeSet::new();
    pages(&docs, &mut there);
    there.remove(&summary);
    let once: BTreeSet<PathBuf> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a page is in the book twice");
    assert_eq!(once, there, "docs/SUMMARY.md and the pages in docs/ differ");
    let book = fs::read_to_string(root().join("book.toml")).unwrap();
    assert!(book.contains("src = \"docs\""), "{book}");
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut all = BTreeSet::new();
    pages(&root().join("docs"), &mut all);
    for page in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] {
        all.insert(root().join(page));
    }
    let said: Vec<String> =
        all.iter().flat_map(|page| faults(page, &fs::read_to_string(page).unwrap())).collect();
    assert!(said.is_empty(), "{}", said.join("\n"));
}

#[test]
fn every_guide_is_compiled_or_has_no_rust() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut all = BTreeSet::new();
    pages(&root().join("docs"), &mut all);
    for page in all {
        let name = page.strip_prefix(root()).unwrap().to_str().unwrap();
        let text = fs::read_to_string(&page).unwrap();
        let rust = text
            .lines()
            .any(|line| line.trim_start().starts_with("```rust") && !line.ends_with("ignore"));
        let compiled = lib.contains(&format!("include_str!(\"../{name}\")"));
        assert!(!rust || compiled, "{name} has Rust code, and src/lib.rs does not compile it");
    }
}

#[test]
fn a_link_that_leads_nowhere_is_noticed() {
    let page = root().join("docs/which.md");
    let said = |text: &str| faults(&page, text).len();
    assert_eq!(
        said("[a](guides/README.md) [b](https://example.com) `[c](none.md)` [d](#which-relay)"),
        1
    );
    assert_eq!(said("[a](../README.md#what-is-promised)\n```\n[b](none.md)\n```\n"), 0);
    assert_eq!(said("[a](none.md) and [b](../README.md#no-such-heading)"), 2);
}

/// The version that a line `name = …` of a manifest asks for, up to its second number.
fn version<'t>(manifest: &'t str, name: &str) -> &'t str {
    let line = manifest.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
    let line = line.unwrap_or_else(|| panic!("no line for {name}"));
    let line = line.split_once("version = ").map_or(line, |(_, rest)| rest);
    let version = line.trim_start_matches('"').split('"').next().unwrap();
    let end = version.match_indices('.').nth(1).map_or(version.len(), |(end, _)| end);
    &version[..end]
}

#[test]
fn the_readme_names_the_versions_of_crates_whose_types_a_service_hands_over() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (manifest, readme, template) =
        (read("Cargo.toml"), read("README.md"), read("template/Cargo.toml"));
    for name in ["async-nats", "sqlx", "tokio-util"] {
        assert_eq!(version(&readme, name), version(&manifest, name), "{name} in README.md");
    }
    for name in ["async-nats", "sqlx", "axum"] {
        let wanted = version(&manifest, name);
        assert_eq!(version(&template, name), wanted, "{name} in template/Cargo.toml");
    }
    let prose = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, words) in [
        ("axum", "the service's axum must be "),
        ("opentelemetry", "its opentelemetry must be "),
        ("tracing-opentelemetry", "its tracing-opentelemetry "),
    ] {
        let said = format!("{words}{}", version(&manifest, name));
        assert!(prose.contains(&said), "README.md should say: {said}");
    }
}
