//! What the services have in their books, and whether it is right, trip by trip.

use std::collections::BTreeMap;

/// The providers, in the order in which they are asked.
const PROVIDERS: [&str; 4] = ["flight", "hotel", "car", "payment"];

#[derive(Clone, Debug, Default)]
pub struct Books {
    pub requested: i64,
    pub requested_again: i64,
    pub trips: Vec<Trip>,
    /// By provider and trip.
    pub ledger: BTreeMap<(String, i64), Account>,
    /// Timers, dead letters, and events that wait.
    pub left_over: Vec<String>,
}

/// What the saga knows of a trip.
#[derive(Clone, Debug, Default)]
pub struct Trip {
    pub trip: i64,
    pub status: String,
    pub failure: Option<String>,
    pub cents: i64,
    pub asked: Vec<String>,
    /// The providers to which compensations were published, in that order.
    pub cancels: Vec<String>,
    /// Ids of the events in its history, but those that were ignored.
    pub handled: Vec<String>,
    /// How often it was requested again, as its history says.
    pub requested_again: i64,
    /// Answers "booked" that came after it had failed.
    pub late: i64,
    /// Which refuses it, by the number of the trip.
    pub refused_by: Option<&'static str>,
    /// Which answers too late, by the number of the trip.
    pub late_by: Option<&'static str>,
}

/// What a provider has booked and cancelled for a trip.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub booked: Vec<i64>,
    pub cancelled: Vec<i64>,
}

/// One claim, and the evidence against it.
pub struct Finding {
    pub claim: &'static str,
    pub problems: Vec<String>,
}

impl Books {
    fn account(&self, provider: &str, trip: i64) -> Account {
        self.ledger.get(&(provider.to_owned(), trip)).cloned().unwrap_or_default()
    }

    fn count(&self, wanted: impl Fn(&Trip) -> bool) -> usize {
        self.trips.iter().filter(|trip| wanted(trip)).count()
    }
}

/// A problem for each trip of which the function finds one.
fn each(books: &Books, problem: impl Fn(&Trip) -> Option<String>) -> Vec<String> {
    let found = books.trips.iter().filter_map(|trip| Some((trip.trip, problem(trip)?)));
    found.map(|(trip, problem)| format!("trip {trip}: {problem}")).collect()
}

pub fn judge(books: &Books) -> Vec<Finding> {
    let finding = |claim, problems| Finding { claim, problems };
    vec![
        finding("every trip is there, and has ended", ended(books)),
        finding("a completed trip is booked whole, each part once", whole(books)),
        finding("a failed trip is undone, each part once", undone(books)),
        finding("money was taken for completed trips, and for no others", money(books)),
        finding("trips fail for the right reasons", reasons(books)),
        finding("compensation goes from the newest to the oldest", newest_first(books)),
        finding("no event took effect twice in a history", once(books)),
        finding("trips that were requested again were started once", started_once(books)),
        finding("no timer, no dead letter and no event is left", books.left_over.clone()),
        finding("everything that can go wrong has happened", happened(books)),
    ]
}

fn ended(books: &Books) -> Vec<String> {
    let mut problems = each(books, |trip| {
        let is_ended = matches!(&*trip.status, "completed" | "failed");
        (!is_ended).then(|| format!("it is {}", trip.status))
    });
    if books.trips.len() as i64 != books.requested {
        problems.push(format!("{} of {} are there", books.trips.len(), books.requested));
    }
    problems
}

fn whole(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let of = |provider: &&str| books.account(provider, trip.trip);
        let is_whole =
            PROVIDERS.iter().map(of).all(|a| a.booked.len() == 1 && a.cancelled.is_empty());
        (trip.status == "completed" && !is_whole).then(|| "it is not booked whole and once".into())
    })
}

fn undone(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let of = |provider: &&str| books.account(provider, trip.trip);
        let is_undone =
            PROVIDERS.iter().map(of).all(|a| a.booked.len() < 2 && a.cancelled == a.booked);
        (trip.status == "failed" && !is_undone).then(|| "not all is undone, or not once".into())
    })
}

fn money(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let Account { booked, cancelled } = books.account("payment", trip.trip);
        let taken = booked.iter().sum::<i64>() - cancelled.iter().sum::<i64>();
        let owed = if trip.status == "completed" { trip.cents } else { 0 };
        (taken != owed).then(|| format!("{taken} cents were taken, and {owed} are owed"))
    })
}

fn reasons(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let failure = trip.failure.as_deref().unwrap_or_default();
        let is_right = match (&*trip.status, trip.refused_by, trip.late_by) {
            ("completed", None, None) => failure.is_empty(),
            // Any provider may be slow, but nobody refuses without a reason.
            ("failed", Some(by), _) => {
                failure == format!("{by} refused") || failure.ends_with("did not answer")
            }
            ("failed", None, _) => failure.ends_with("did not answer"),
            _ => false,
        };
        (!is_right).then(|| format!("it is {}: {failure:?}", trip.status))
    })
}

fn newest_first(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let newest_first: Vec<_> = trip.asked.iter().rev().cloned().collect();
        let wanted = if trip.status == "failed" { newest_first } else { Vec::new() };
        (trip.cancels != wanted)
            .then(|| format!("asked {:?}, cancelled {:?}", trip.asked, trip.cancels))
    })
}

fn once(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let mut ids = trip.handled.clone();
        ids.sort();
        ids.dedup();
        (ids.len() != trip.handled.len()).then(|| "an event is there twice".into())
    })
}

fn started_once(books: &Books) -> Vec<String> {
    each(books, |trip| {
        let wanted = i64::from(trip.trip <= books.requested_again);
        let found = trip.requested_again;
        (found != wanted).then(|| format!("ignored {found} further requests, of {wanted}"))
    })
}

fn happened(books: &Books) -> Vec<String> {
    let failed_by = |part: &str| {
        let part = part.to_owned();
        books.count(move |trip| trip.failure.as_deref().is_some_and(|why| why.contains(&part)))
    };
    let all = [
        ("no trip is completed", books.count(|trip| trip.status == "completed")),
        ("no car was refused after two bookings", failed_by("car refused")),
        ("nobody was too slow", failed_by("did not answer")),
        ("no answer came after the deadline", books.count(|trip| trip.late > 0)),
    ];
    all.into_iter()
        .filter(|(_, count)| *count == 0)
        .map(|(problem, _)| problem.to_owned())
        .collect()
}

/// Prints the findings, and returns whether all claims hold.
pub fn report(books: &Books) -> bool {
    let failed = |why: &str| {
        let why = why.to_owned();
        books.count(move |trip| {
            trip.failure.as_deref().is_some_and(|failure| failure.ends_with(&why))
        })
    };
    println!(
        "\n{} trips: {} completed, {} refused, {} without an answer in time; {} got answers after that\n",
        books.trips.len(),
        books.count(|trip| trip.status == "completed"),
        failed("refused"),
        failed("did not answer"),
        books.count(|trip| trip.late > 0),
    );
    let findings = judge(books);
    for Finding { claim, problems } in &findings {
        println!("{}  {claim}", if problems.is_empty() { " ok " } else { "FAIL" });
        problems.iter().take(5).for_each(|problem| println!("        {problem}"));
    }
    let wrong = findings.iter().filter(|finding| !finding.problems.is_empty()).count();
    match wrong {
        0 => println!("\nVERDICT: all is well. Every trip is whole or wholly undone."),
        wrong => println!("\nVERDICT: {wrong} of {} claims do not hold.", findings.len()),
    }
    wrong == 0
}
