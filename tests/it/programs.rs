//! Each file of tests is a module of its crate's test program. The compiler does not see one that is not.
use std::{fs, path::Path};

#[test]
fn no_file_of_tests_is_left_out() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for krate in ". event outbox relay inbox consumer saga cli testkit faults".split(' ') {
        let tests = root.join(krate).join("tests");
        let main = fs::read_to_string(tests.join("it/main.rs")).unwrap();
        let listed = |name: &str| main.lines().any(|line| line == format!("mod {name};"));
        for (folder, known) in [(tests.clone(), "it"), (tests.join("it"), "main")] {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap();
                let there = path.parent().unwrap().ends_with("it");
                assert!(
                    name == known || there && listed(name),
                    "{} is not run: tests/it/main.rs of its crate must name it",
                    path.display()
                );
            }
        }
    }
}
