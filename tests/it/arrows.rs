//! Arrows between the modules of a crate go down only: no module uses one that uses it, directly or around corners.
//! Left out is `faults`, whose faults and world still use each other.

use std::collections::{BTreeMap, BTreeSet};
use std::{fs, path::Path};

/// The code below a folder, without comments and unit tests, by the module at the crate's root.
fn modules(folder: &Path, module: Option<&str>, into: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            modules(&path, module.or(Some(name)), into);
        } else if name != "tests" && path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap().lines();
            let code = code.filter(|line| !line.trim_start().starts_with("//"));
            into.entry(module.unwrap_or(name).to_owned()).or_default().extend(code);
        }
    }
}

/// The name behind each `before`, or the names in braces there.
fn names<'t>(code: &'t str, before: &str) -> BTreeSet<&'t str> {
    let of_word = |c: char| c.is_alphanumeric() || c == '_';
    let words = |text: &'t str| text.split(move |c| !of_word(c)).filter(|word| !word.is_empty());
    let lists = code.split(before).skip(1).map(|rest| match rest.starts_with('{') {
        true => words(rest.split("};").next().unwrap_or(rest)).collect(),
        false => words(rest).take(1).collect::<Vec<_>>(),
    });
    lists.flatten().collect()
}

#[test]
fn no_crate_has_a_circle_of_modules() {
    for krate in
        "event event/derive store outbox relay inbox consumer saga trail console cli testkit benches"
            .split(' ')
    {
        let mut code = BTreeMap::new();
        modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join(krate).join("src"), None, &mut code);
        let exports = code.remove("lib").unwrap_or_default();
        let mut left: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for module in code.keys() {
            // Used by its own name, or by one that the crate's root exports.
            let mut known = names(&exports, &format!("use {module}::"));
            known.insert(module);
            let users = code.iter().filter(|(_, code)| !names(code, "crate::").is_disjoint(&known));
            left.insert(module, users.map(|(user, _)| &**user).filter(|it| it != module).collect());
        }
        // Takes away what nobody uses any more, until only circles and what they use is left.
        for _ in 0..code.len() {
            let users = left.clone();
            left.retain(|_, by| by.iter().any(|user| users.contains_key(user)));
        }
        assert!(
            left.is_empty(),
            "{krate} has a circle of modules; what is used, and by whom: {left:#?}"
        );
    }
}
