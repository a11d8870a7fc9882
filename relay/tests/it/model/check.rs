//! Runs a check, and prints what came of it.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

/// Visits every state that can be reached; panics with the shortest way to one in which a property does not hold.
pub fn proved<M>(model: M)
where
    M: Model + Clone + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Display + PartialEq + Hash + Send + Sync,
    M::Action: Clone + Display + PartialEq,
{
    let began = Instant::now();
    let checker =
        model.clone().checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{model:?}: {} states, {} steps deep at most, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth() - 1,
        began.elapsed().as_secs_f64()
    );
    for property in model.properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, found) => {
                assert!(found.is_some(), "never seen: {}", property.name);
            }
            (_, Some(found)) => panic!("not so: {}\n{}", property.name, story(found)),
            (_, None) => assert!(checker.is_done()),
        }
    }
}

/// Looks for a state in which the property does not hold, prints the shortest way to one, and panics if there is none.
pub fn refuted<M>(model: M, property: &'static str)
where
    M: Model + Clone + Debug + Send + Sync + 'static,
    M::State: Clone + Debug + Display + PartialEq + Hash + Send + Sync,
    M::Action: Clone + Display + PartialEq,
{
    let found = HasDiscoveries::AllOf(BTreeSet::from([property]));
    let checker = model.clone().checker().finish_when(found).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else {
        panic!("{model:?}: {property}, in all of {} states", checker.unique_state_count());
    };
    println!("{model:?}: not so: {property}\n{}", story(path));
}

/// What happened, step by step, and how it stood in the end.
fn story<S: Clone + Debug + Display + PartialEq, A: Display + PartialEq>(
    path: Path<S, A>,
) -> String {
    let end = path.last_state().to_string();
    let steps = path.into_actions();
    let steps = steps.iter().enumerate().map(|(at, step)| format!("  {:2}. {step}\n", at + 1));
    let end = end.lines().map(|line| format!("      {line}\n"));
    steps.chain(end).collect()
}
