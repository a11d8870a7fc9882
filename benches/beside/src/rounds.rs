//! Rounds in which all contestants take turns.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use pillarbox_testkit::Servers;
use sqlx::PgPool;

use crate::Arguments;
use crate::condition::Condition;
use crate::contestant::{Contestant, contestants};
use crate::measures::{Measure, Values};
use crate::results::{self, Line, Record};
use crate::site::Site;

/// A run of the program.
pub struct Run<'a> {
    pub arguments: &'a Arguments,
    pub servers: Servers,
}

impl Run<'_> {
    /// Runs all rounds.
    pub async fn rounds(&self) -> Result<()> {
        let arguments = self.arguments;
        let mut present = Vec::new();
        let postgres = PgPool::connect(&self.servers.postgres.url("postgres")).await?;
        for contestant in contestants() {
            let name = contestant.name();
            if !arguments.only.is_empty() && !arguments.only.iter().any(|only| name.contains(only))
            {
                continue;
            }
            match contestant.missing(&postgres).await? {
                Some(reason) => println!("left out: {name}: {reason}"),
                None => present.push(contestant),
            }
        }
        let done = results::read(&arguments.out)?;
        let done = done.iter().map(|record| record.round).max().unwrap_or(0);
        for round in done + 1..=done + arguments.rounds {
            for condition in Condition::value_variants() {
                if arguments.condition.is_empty() || arguments.condition.contains(condition) {
                    // Each round begins with a different contestant.
                    let turn = usize::try_from(round)? * 3 % present.len().max(1);
                    present.rotate_left(turn);
                    self.condition(round, *condition, &present).await?;
                    present.rotate_right(turn);
                }
            }
        }
        Ok(())
    }

    /// Runs a round under one condition. Churn takes long to set up, so contestants with the same outbox share it.
    async fn condition(
        &self,
        round: u32,
        condition: Condition,
        present: &[Box<dyn Contestant>],
    ) -> Result<()> {
        let mut outboxes: Vec<Vec<&dyn Contestant>> = Vec::new();
        for contestant in present {
            match outboxes.iter_mut().find(|group| group[0].outbox() == contestant.outbox()) {
                Some(group) => group.push(&**contestant),
                None => outboxes.push(vec![&**contestant]),
            }
        }
        for group in outboxes {
            let mut shared = None;
            for (place, contestant) in group.into_iter().enumerate() {
                for measure in Measure::value_variants() {
                    let wanted = self.arguments.measure.is_empty()
                        || self.arguments.measure.contains(measure);
                    // The writers' rate does not depend on the reader.
                    let once = *measure == Measure::Writers && place > 0;
                    let possible = contestant.ships() || *measure == Measure::Writers;
                    if !wanted || once || !possible || !measure.applies(condition) {
                        continue;
                    }
                    let (mut site, open) = match shared.take() {
                        Some(shared) => shared,
                        None => {
                            let mut site = Site::open(&self.servers, contestant).await?;
                            let churn = self.arguments.churn;
                            let open = condition.bring_about(contestant, &site, churn).await;
                            let open = open.with_context(|| contestant.name())?;
                            site.new_stream().await?;
                            (site, open)
                        }
                    };
                    let values = measure.of(contestant, &site, self.arguments).await;
                    let values = values
                        .with_context(|| format!("{}, {}", contestant.name(), measure.name()))?;
                    self.record(round, contestant, condition, *measure, values)?;
                    if condition == Condition::Churn {
                        contestant.pass(&site).await?;
                        site.new_stream().await?;
                        shared = Some((site, open));
                    } else {
                        drop(open);
                        site.close().await?;
                    }
                }
            }
            if let Some((site, open)) = shared {
                drop(open);
                site.close().await?;
            }
        }
        Ok(())
    }

    fn record(
        &self,
        round: u32,
        contestant: &dyn Contestant,
        condition: Condition,
        measure: Measure,
        values: Values,
    ) -> Result<()> {
        let shown: Vec<String> =
            values.iter().map(|(name, value)| format!("{name} {value:.1}")).collect();
        println!(
            "round {round}, {}, {}, {}: {}",
            condition.name(),
            contestant.name(),
            measure.name(),
            shown.join(", ")
        );
        let record = Record {
            round,
            contestant: contestant.name(),
            condition: condition.name().to_owned(),
            measure: measure.name().to_owned(),
            values,
        };
        results::write(&self.arguments.out, &Line::Record(record))
    }
}
