//! Variants that take turns.
//!
//! A machine changes while it is measured: its disk fills, its clock speed varies, other programs use it. So the
//! variants run in turn, round by round, and each round gives a ratio of its own. Each round begins with a different
//! variant, because the one that comes after a heavy one may suffer from it. Round 0 is a warm-up and does not count;
//! all other rounds count.

use anyhow::Result;

/// Runs all `ways` in each of `rounds` rounds, after a warm-up, and returns the figures of each variant's rounds. With
/// 0 rounds there is only the warm-up, and its figures are returned. `show` gets the name of the round and the figures,
/// in the order of the variants.
///
/// # Errors
/// The first error that `measure` returns.
pub async fn interleaved<T: Clone>(
    ways: usize,
    rounds: usize,
    mut measure: impl AsyncFnMut(usize, usize) -> Result<T>,
    mut show: impl FnMut(&str, &[T]),
) -> Result<Vec<Vec<T>>> {
    let mut all = vec![Vec::with_capacity(rounds); ways];
    for round in 0..=rounds {
        let mut measured = vec![None; ways];
        for turn in 0..ways {
            let way = (round + turn) % ways;
            measured[way] = Some(measure(way, round).await?);
        }
        let measured: Vec<T> = measured.into_iter().flatten().collect();
        let name = if round == 0 { "warm-up".to_owned() } else { round.to_string() };
        show(&name, &measured);
        if round > 0 || rounds == 0 {
            for (all, figure) in all.iter_mut().zip(measured) {
                all.push(figure);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ways_take_turns_in_another_order_each_round_and_the_warm_up_does_not_count() {
        let (mut ran, mut shown) = (Vec::new(), Vec::new());
        let measure = async |way, round| {
            ran.push((round, way));
            Ok(10 * round + way)
        };
        let figures =
            interleaved(2, 2, measure, |name, _| shown.push(name.to_owned())).await.unwrap();
        assert_eq!(ran, [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]);
        assert_eq!(figures, [[10, 20], [11, 21]]);
        assert_eq!(shown, ["warm-up", "1", "2"]);
    }
}
