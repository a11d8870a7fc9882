//! The lease as a state machine: relays that ship the same events, one at a time if all goes well.
//!
//! Time passes in ticks. All that is kept of it is how long something still lasts, so that states repeat.

use std::fmt;

use stateright::{Model, Property};

use super::broker::{Broker, Event};
use super::database::{Database, Epoch, Request, Write};

/// How much there is of everything.
#[derive(Clone, Debug)]
pub struct Relays {
    pub rule: LeaseRule,
    pub relays: usize,
    /// Events in the outbox, all of them committed.
    pub events: Event,
    /// How often the lease may be taken.
    pub epochs: Epoch,
    /// The length of the lease, in ticks.
    pub lease: u8,
    /// Whether a relay's clock may stand still for every other tick of the database's.
    pub slow_clocks: bool,
    /// Whether the broker may forget, at any time, that it has seen a message.
    pub forgets: bool,
}

/// How a relay goes by its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseRule {
    /// As it is shipped.
    Shipped,
    /// Writes do not name the epoch.
    NoEpoch,
    /// A leader does not look at its own clock.
    NoClock,
    /// The cursor that is saved counts what has been sent, not what has been stored.
    SavedBeforeStored,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub database: Database,
    pub broker: Broker,
    pub relays: Vec<Relay>,
    pub fault: Option<Fault>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relay {
    at: At,
    /// Its clock stood still at the last tick.
    stood_still: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum At {
    Standby,
    /// It has looked at its clock and asked for the lease, `ago` ticks ago; the database has not heard it yet.
    Asking {
        ago: u8,
    },
    /// It believes that it leads.
    Leader(Leader),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Leader {
    epoch: Epoch,
    /// How long the lease lasts by its own clock.
    left: u8,
    /// The last event that it knows to be stored.
    stored: Event,
    /// The last event that it has saved.
    saved: Event,
    /// The next event is on its way to the broker.
    sending: bool,
    /// What it has asked of the database, which has not heard it yet.
    request: Option<Request>,
}

/// What must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A write of a former leader took effect.
    FormerWrote,
    /// The cursor went back.
    WentBack,
    /// A former leader began to send.
    FormerSends,
    /// An event was stored for the first time before an earlier one.
    OutOfOrder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Ask(usize),
    Renew(usize),
    Save(usize),
    Release(usize),
    /// The database hears what a relay has asked.
    Answer(usize),
    /// It hears something of which the asker is gone.
    AnswerLate(usize),
    Send(usize),
    Store(usize),
    StoreLate(Event),
    Forget(Event),
    GiveUp(usize),
    Die(usize),
    /// One tick; the clocks of these relays, bit by bit, stand still.
    Tick {
        still: u8,
    },
}

pub const FORMER_WRITES_NOTHING: &str = "a former leader's write changes nothing";
pub const FORWARD: &str = "the cursor never goes back";
pub const STORED: &str = "what the cursor has passed is stored";
pub const ONLY_REPEATS: &str = "events are first stored in order: a former leader can only repeat";
pub const ONE_SENDS: &str = "no former leader begins to send";
pub const ONCE: &str = "while the broker remembers, each event is stored once";

impl Model for Relays {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let standby = Relay { at: At::Standby, stood_still: false };
        vec![State {
            database: Database::new(),
            broker: Broker::default(),
            relays: vec![standby; self.relays],
            fault: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (who, relay) in state.relays.iter().enumerate() {
            match &relay.at {
                At::Standby if state.database.epoch < self.epochs => {
                    actions.push(Action::Ask(who));
                }
                At::Standby => {}
                At::Asking { .. } => actions.extend([Action::Answer(who), Action::Die(who)]),
                At::Leader(leader) => self.of_leader(state, who, leader, actions),
            }
        }
        actions.extend((0..state.database.late.len()).map(Action::AnswerLate));
        actions.extend(state.broker.late().map(Action::StoreLate));
        if self.forgets {
            actions.extend(state.broker.remembered().map(Action::Forget));
        }
        let may_stand_still: u8 = state
            .relays
            .iter()
            .enumerate()
            .filter(|(_, relay)| self.slow_clocks && !relay.stood_still)
            .map(|(who, _)| 1 << who)
            .sum();
        let ticks = (0..1 << self.relays).filter(|still: &u8| still & !may_stand_still == 0);
        actions.extend(ticks.map(|still| Action::Tick { still }));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Ask(who) => state.relays[who].at = At::Asking { ago: 0 },
            Action::Renew(who) => state.leader(who).request = Some(Request::Renew { ago: 0 }),
            Action::Save(who) => {
                let leader = state.leader(who);
                let ahead = leader.sending && self.rule == LeaseRule::SavedBeforeStored;
                leader.saved = leader.stored + Event::from(ahead);
                leader.request = Some(Request::Save { cursor: leader.saved });
            }
            Action::Release(who) => {
                state.leader(who).request = Some(Request::Release);
                state.end(who);
            }
            Action::Answer(who) => self.answer(&mut state, who),
            Action::AnswerLate(at) => {
                let write = state.database.late.remove(at);
                self.write(&mut state, write);
            }
            Action::Send(who) => {
                let epoch = state.database.epoch;
                let leader = state.leader(who);
                leader.sending = true;
                if leader.epoch != epoch {
                    state.fault = Some(Fault::FormerSends);
                }
            }
            Action::Store(who) => {
                let leader = state.leader(who);
                leader.sending = false;
                leader.stored += 1;
                let event = leader.stored;
                state.store(event);
            }
            Action::StoreLate(event) => {
                state.broker.arrives(event);
                state.store(event);
            }
            Action::Forget(event) => state.broker.forget(event),
            Action::GiveUp(who) => state.end(who),
            Action::Die(who) => {
                state.end(who);
                state.database.is_another_process(who);
            }
            Action::Tick { still } => state.tick(still, self.lease),
        }
        if self.rule == LeaseRule::Shipped {
            self.merge(&mut state);
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(FORMER_WRITES_NOTHING, |_: &Self, state: &State| {
                state.fault != Some(Fault::FormerWrote)
            }),
            Property::always(FORWARD, |_: &Self, state: &State| {
                state.fault != Some(Fault::WentBack)
            }),
            Property::always(STORED, |_: &Self, state: &State| {
                (1..=state.database.cursor).all(|event| state.broker.has(event))
            }),
            Property::always(ONLY_REPEATS, |_: &Self, state: &State| {
                state.fault != Some(Fault::OutOfOrder)
            }),
            Property::sometimes(
                "the last possible leader saves that all is stored",
                |model: &Self, state: &State| {
                    let State { database, broker, .. } = state;
                    database.epoch == model.epochs
                        && database.cursor == model.events
                        && broker.has(model.events)
                },
            ),
            Property::sometimes("two relays believe that they lead", |_: &Self, state: &State| {
                state.leaders().count() > 1
            }),
            Property::sometimes(
                "a former leader's message is under way",
                |_: &Self, state: &State| {
                    let epoch = state.database.epoch;
                    state.leaders().any(|leader| leader.sending && leader.epoch != epoch)
                },
            ),
        ];
        if self.forgets {
            properties.push(Property::sometimes(
                "an event is stored twice",
                |_: &Self, state: &State| state.broker.repeated,
            ));
        } else {
            properties
                .push(Property::always(ONCE, |_: &Self, state: &State| !state.broker.repeated));
        }
        if self.slow_clocks {
            properties
                .push(Property::sometimes("a former leader sends", |_: &Self, state: &State| {
                    state.fault == Some(Fault::FormerSends)
                }));
        } else {
            properties.push(Property::always(ONE_SENDS, |_: &Self, state: &State| {
                state.fault != Some(Fault::FormerSends)
            }));
        }
        properties
    }
}

impl Relays {
    fn of_leader(&self, state: &State, who: usize, leader: &Leader, actions: &mut Vec<Action>) {
        let valid = leader.left > 0 || self.rule == LeaseRule::NoClock;
        if valid && !leader.sending && leader.stored < self.events {
            actions.push(Action::Send(who));
        }
        if leader.sending {
            actions.push(Action::Store(who));
        }
        match leader.request {
            Some(_) => actions.push(Action::Answer(who)),
            None if valid => {
                actions.push(Action::Renew(who));
                let ahead = leader.sending && self.rule == LeaseRule::SavedBeforeStored;
                if leader.stored + Event::from(ahead) > leader.saved {
                    actions.push(Action::Save(who));
                } else if !leader.sending && state.database.cursor == leader.saved {
                    actions.push(Action::Release(who));
                }
            }
            None => {}
        }
        actions.extend([Action::GiveUp(who), Action::Die(who)]);
    }

    /// Makes one state of those from which the same can follow.
    fn merge(&self, state: &mut State) {
        for who in 0..state.relays.len() {
            // It may do nothing any more before it leads again; what it has under way may still arrive.
            if let At::Leader(Leader { left: 0, request, .. }) = &state.relays[who].at
                && !matches!(request, Some(Request::Renew { .. }))
            {
                state.end(who);
            }
            if state.relays[who].at == At::Standby {
                state.relays[who].stood_still = false;
            }
        }
        state.database.forget_what_does_nothing();
        if !self.forgets {
            state.broker.forget_what_it_would_drop();
        }
        // Which relay is which does not matter.
        state.database.rename(&mut state.relays);
    }

    /// The database does what a relay has asked, and the relay hears of it. That it may hear of it later makes no
    /// difference: a relay may wait with its next step for as long as it likes.
    fn answer(&self, state: &mut State, who: usize) {
        let from = |ago: u8| self.lease.saturating_sub(ago);
        if let At::Asking { ago } = state.relays[who].at {
            let granted = state.database.acquire(who, self.lease);
            state.relays[who].at = match granted {
                Some((epoch, cursor)) => At::Leader(Leader {
                    epoch,
                    left: from(ago),
                    stored: cursor,
                    saved: cursor,
                    sending: false,
                    request: None,
                }),
                None => At::Standby,
            };
            return;
        }
        let leader = state.leader(who);
        let Some(request) = leader.request.take() else { return };
        let write = Write { epoch: leader.epoch, request };
        if !self.write(state, write) {
            state.end(who);
        } else if let Request::Renew { ago } = request {
            state.leader(who).left = from(ago);
        }
    }

    /// `update … where name = $1 and epoch = $2`. Answers whether it did anything.
    fn write(&self, state: &mut State, write: Write) -> bool {
        let former = write.epoch != state.database.epoch;
        if former && self.rule != LeaseRule::NoEpoch {
            return false;
        }
        let before = state.database.cursor;
        state.database.write(write.request, self.lease);
        if state.database.cursor < before {
            state.fault = Some(Fault::WentBack);
        } else if former {
            state.fault = Some(Fault::FormerWrote);
        }
        true
    }
}

impl State {
    fn leaders(&self) -> impl Iterator<Item = &Leader> {
        self.relays.iter().filter_map(|relay| match &relay.at {
            At::Leader(leader) => Some(leader),
            _ => None,
        })
    }

    fn leader(&mut self, who: usize) -> &mut Leader {
        match &mut self.relays[who].at {
            At::Leader(leader) => leader,
            other => panic!("no leader: {other:?}"),
        }
    }

    /// A relay leads no more. What it has under way may still arrive, or may not.
    fn end(&mut self, who: usize) {
        let before = std::mem::replace(&mut self.relays[who].at, At::Standby);
        let At::Leader(leader) = before else { return };
        if leader.sending {
            self.broker.will_arrive(leader.stored + 1);
        }
        if let Some(request) = leader.request {
            self.database.late.push(Write { epoch: leader.epoch, request });
        }
    }

    fn store(&mut self, event: Event) {
        if !self.broker.store(event) {
            self.fault = Some(Fault::OutOfOrder);
        }
    }

    fn tick(&mut self, still: u8, lease: u8) {
        self.database.tick();
        for (who, relay) in self.relays.iter_mut().enumerate() {
            relay.stood_still = still & (1 << who) != 0;
            if relay.stood_still {
                continue;
            }
            let older = |ago: u8| (ago + 1).min(lease);
            match &mut relay.at {
                At::Standby => {}
                At::Asking { ago } => *ago = older(*ago),
                At::Leader(leader) => {
                    leader.left = leader.left.saturating_sub(1);
                    if let Some(Request::Renew { ago }) = &mut leader.request {
                        *ago = older(*ago);
                    }
                }
            }
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.database)?;
        write!(f, "{}", self.broker)?;
        for (who, relay) in self.relays.iter().enumerate() {
            let Relay { at: At::Leader(leader), .. } = relay else { continue };
            let Leader { epoch, left, stored, .. } = leader;
            write!(
                f,
                "\n{} leads in epoch {epoch} for {left} ticks, stored up to {stored}",
                name(&who)
            )?;
        }
        match self.fault {
            Some(fault) => write!(f, "\n{fault:?}"),
            None => Ok(()),
        }
    }
}

fn name(who: &usize) -> char {
    char::from(b'A' + u8::try_from(*who).unwrap())
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(who) => write!(f, "{} asks for the lease", name(who)),
            Self::Renew(who) => write!(f, "{} asks to renew the lease", name(who)),
            Self::Save(who) => write!(f, "{} writes the cursor", name(who)),
            Self::Release(who) => write!(f, "{} stops, and releases the lease", name(who)),
            Self::Answer(who) => write!(f, "the database answers {}", name(who)),
            Self::AnswerLate(_) => f.write_str("the database hears the write of one that is gone"),
            Self::Send(who) => write!(f, "{} sends its next event", name(who)),
            Self::Store(who) => write!(f, "the broker stores it for {}", name(who)),
            Self::StoreLate(event) => write!(f, "event {event} of one that is gone arrives"),
            Self::Forget(event) => write!(f, "the broker forgets that it has seen event {event}"),
            Self::GiveUp(who) => write!(f, "{} gives up leading", name(who)),
            Self::Die(who) => write!(f, "{} dies and is started again", name(who)),
            Self::Tick { still: 0 } => f.write_str("time passes"),
            Self::Tick { still } => write!(f, "time passes, not on clocks {still:b}"),
        }
    }
}
