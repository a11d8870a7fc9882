//! What others put into a schema of the service's search_path runs in no statement of a saga.
//!
//! The consumer's tests read the same statements, and those that no test runs.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use pillarbox_event::{IntoEvent, RawEvent};
use pillarbox_inbox::Outcome;
use pillarbox_outbox::Outbox;
use pillarbox_saga::metrics::measure;
use pillarbox_saga::operate::{End, Instances, Which};
use pillarbox_saga::{Saga, Status};
use pillarbox_store::Operator;
use pillarbox_testkit::{eventually, traps};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::bad_input::renamed;
use crate::trips::*;

const TEMPORARY: &str = include_str!("temporary.sql");

/// Lets a role that is nobody in particular create what it likes in schema `public`.
async fn lay_traps(office: &Office) {
    let role = format!("stranger_{}", office.scope.prefix());
    let sql = format!(
        "create role {role}; grant create, usage on schema public to {role}; begin; set local role {role}; {} commit",
        traps::sql("public")
    );
    office.run(&sql).await;
}

/// A service's only session, with this search_path. Before it begins, it runs `first`.
async fn service(office: &Office, path: &str, first: &'static str) -> PgPool {
    let options: PgConnectOptions = office.scope.database_url().parse().unwrap();
    let options = options.options([("search_path", path.replace(' ', ""))]);
    let pool = PgPoolOptions::new().max_connections(1).after_connect(move |connection, _| {
        Box::pin(async move { sqlx::raw_sql(first).execute(connection).await.map(drop) })
    });
    pool.connect_with(options).await.unwrap()
}

fn event(event: impl IntoEvent) -> RawEvent {
    event.into_event().unwrap()
}

/// A service with a search_path in which traps are found, and ids that no other run has.
struct Run<'a> {
    office: &'a Office,
    path: &'a str,
    pool: PgPool,
}

impl Run<'_> {
    fn id(&self, name: &str) -> String {
        format!("{name} with {}", self.path)
    }

    async fn fine(&self, after: &str) {
        let sprung = self.office.text("select is_called::text from public.sprung").await;
        let path = self.path;
        assert_eq!(sprung, "false", "a trap ran with search_path = {path}, in: {after}");
    }

    /// An event that a saga handles, and no trap.
    async fn when(&self, saga: Saga<Trip>, event: RawEvent) {
        let what = format!("{} for {}", event.event_type(), event.key().unwrap_or_default());
        let outcome = give(&self.pool, saga, event).await;
        self.fine(&what).await;
        assert_eq!(outcome.unwrap(), Outcome::Handled, "{what}");
    }

    /// Starts, steps, timers, what is ignored, failures and completions, a new name, and removal.
    async fn events(&self) {
        let (booked, refused, unanswered) =
            (self.id("booked"), self.id("refused"), self.id("unanswered"));
        let first = || saga().deadline(Duration::from_secs(900)).history(1);
        for event in [
            event(Requested::of(&booked)),
            event(Requested::of(&booked)),
            event(FlightBooked::of(&booked)),
            event(poke(&booked, "cancel the timer")),
            event(HotelBooked::of(&booked)),
            event(HotelBooked::of(&booked)),
            event(Requested::of(&refused)),
            event(FlightBooked::of(&refused)),
            event(HotelRefused::of(&refused)),
            event(HotelCancelled::of(&refused)),
            event(FlightCancelled::of(&refused)),
            event(Requested::of(&unanswered)),
        ] {
            self.when(first(), event).await;
        }
        let early = give(&self.pool, first(), FlightBooked::of(&self.id("early"))).await;
        self.fine("an event without an instance").await;
        let early = pillarbox_store::full_text(&early.unwrap_err());
        assert!(early.contains("has no instance"), "{early}");

        assert_eq!(self.office.stands(&booked).await, "completed hotel");
        assert_eq!(self.office.stands(&refused).await, "failed hotel");
        let timer = self.office.scheduled().await.remove(0);
        self.when(first(), timer).await;
        assert_eq!(self.office.stands(&unanswered).await, "compensating flight");
        let last = event(FlightCancelled::of(&unanswered));
        self.when(saga().retention(Duration::ZERO), last).await;
        for trip in [&booked, &refused, &unanswered] {
            assert_eq!(self.office.stands(trip).await, "not there", "it was removed: {trip}");
        }

        let old = self.id("of the old name");
        self.when(saga(), event(Requested::of(&old))).await;
        self.when(renamed().formerly("trip"), event(FlightBooked::of(&old))).await;
        assert_eq!(self.office.stands(&old).await, "not there", "it has the new name");
    }

    /// All that an operator does, with the service's session, and the gauges.
    async fn operators(&self) {
        let trips @ [cancelled, dropped, completed] =
            &["cancelled", "dropped", "completed"].map(|name| self.id(name));
        for trip in trips {
            self.when(saga(), event(Requested::of(trip))).await;
        }
        let instances = Instances::new(Outbox::new());
        let mut connection = self.pool.acquire().await.unwrap();
        for (which, found) in [
            (Which { saga: Some("trip".into()), ..Which::default() }, 3),
            (Which { id: Some(dropped.clone()), ..Which::default() }, 1),
            (Which { status: Some(Status::Failed), ..Which::default() }, 0),
            (Which { step: Some("flight".into()), overdue: true, ..Which::default() }, 0),
        ] {
            let listed = instances.list(&mut connection, &which, 9).await;
            self.fine(&format!("{which:?}")).await;
            assert_eq!(listed.unwrap().len(), found, "{which:?}");
        }
        let history = instances.history(&mut connection, "trip", dropped).await;
        self.fine("the history").await;
        assert_eq!(history.unwrap().len(), 1);
        let state = instances.state(&mut connection, "trip", dropped).await;
        self.fine("the state").await;
        assert!(state.unwrap().is_some());
        for (trip, end, status) in [
            (cancelled, End::Cancel, Status::Compensating),
            (cancelled, End::Complete, Status::Failed),
            (dropped, End::CancelWithoutCompensation, Status::Failed),
            (completed, End::Complete, Status::Completed),
        ] {
            let ended = instances
                .end(&mut connection, "trip", trip, end, &Operator::new("mia", Some("why")))
                .await;
            self.fine(&format!("{end:?} of {trip}")).await;
            assert_eq!(ended.unwrap(), status);
        }
        drop(connection);
        self.gauges().await;
    }

    async fn gauges(&self) {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        // For this thread, on which all of the test runs.
        let _recording = metrics::set_default_local_recorder(&recorder);
        let measuring = measure(self.pool.clone(), Outbox::new());
        let found = eventually("the gauges", Duration::from_secs(30), async || {
            self.fine("the gauges").await;
            let text = handle.render();
            let wanted = "pillarbox_saga_failed_instances{saga=\"trip\"} 2";
            if text.contains(wanted) { Ok(Some(())) } else { Err(text) }
        });
        tokio::select! {
            found = found => found.unwrap(),
            () = measuring => unreachable!("it goes on"),
        }
    }
}

/// Runs all statements with each path, and then `stumbles`, which shows that the traps are found with that path:
/// without it, all would pass with traps that nobody can step on.
async fn no_trap_runs(paths: [&str; 2], first: &'static str, stumbles: &'static str) {
    let office = Office::open().await;
    lay_traps(&office).await;
    for path in paths {
        let pool = service(&office, path, first).await;
        let run = Run { office: &office, path, pool };
        run.events().await;
        run.operators().await;

        let _ = sqlx::raw_sql(stumbles).execute(&run.pool).await;
        let sprung = office.text("select is_called::text from public.sprung").await;
        assert_eq!(sprung, "true", "{path}");
        office.run("select setval('public.sprung', 1, false)").await;
        office.run("delete from pillarbox.saga; delete from pillarbox.outbox_scheduled").await;
    }
}

/// The paths under which a trap is found: before the same name in pg_catalog, and only where it fits better.
#[tokio::test]
async fn no_trap_in_public_runs_in_a_statement_of_a_saga() {
    let stumbles = "select 1::bigint * interval '1 second'";
    no_trap_runs(["public, pg_catalog", "public"], "", stumbles).await;
}

/// The paths under which a temporary type is found before that of pg_catalog: by default, and by name.
#[tokio::test]
async fn no_trap_in_the_temporary_schema_runs_in_a_statement_of_a_saga() {
    no_trap_runs(["public", "pg_temp, pg_catalog, public"], TEMPORARY, "select '{}'::jsonb").await;
}
