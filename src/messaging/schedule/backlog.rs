//! The waiting events: each user's in order, as many as memory has room for. The rest are held in
//! their own table, so that reads of new events need not scan them.
//!
//! To keep each user's order, later events of a user follow the held ones. A held event comes into
//! memory when no earlier one of its user is held, or together with the one before it. None does
//! before everything that the last session had in memory has been read.
//!
//! To forget none, the first held event of each user is always after `held_after` of its lane, or
//! its user is in memory or among the followers.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;

use super::lane::{LANES, Lane, lane};
use crate::repository::outbox_event::OutboxEvent;

/// Most events of one user in memory, so that a user that changes faster than its events are
/// confirmed takes no memory from others.
const MOST_OF_A_USER: usize = if cfg!(test) { 6 } else { 64 };
/// Most users, and about as many events, in one read of followers.
const MOST_FOLLOWERS: usize = 500;

#[derive(Debug)]
pub(crate) struct Backlog {
    users: HashMap<i64, User>,
    /// The positions of all events in memory, and their users.
    known: BTreeMap<i64, i64>,
    /// By lane: the events in memory of all users whose first event is in it.
    buffered: [usize; LANES],
    /// All new events were read once.
    is_caught_up: bool,
    /// By lane: the position after which there may be unread held events; `None` if there are none.
    held_after: [Option<i64>; LANES],
    /// The lane whose held events were read last.
    last_read: usize,
    /// Users whose last event in memory was confirmed or quarantined, and who may have held ones.
    followers: HashSet<i64>,
    /// Positions of events that were read and must be held, and their users.
    to_hold: Vec<i64>,
    held_of: HashSet<i64>,
}

#[derive(Debug, Default)]
struct User {
    /// In order. The first may be in flight, and all wait in its lane.
    events: VecDeque<Arc<OutboxEvent>>,
    /// Later events may be held.
    has_held: bool,
    /// The first was rejected, so no other one stays in memory.
    is_rejected: bool,
}

impl Default for Backlog {
    /// Starts before the first held event, because another leader may have held some.
    fn default() -> Self {
        Self {
            users: HashMap::new(),
            known: BTreeMap::new(),
            buffered: [0; LANES],
            is_caught_up: false,
            held_after: [Some(0); LANES],
            last_read: 0,
            followers: HashSet::new(),
            to_hold: Vec::new(),
            held_of: HashSet::new(),
        }
    }
}

impl Backlog {
    /// Takes a new event, or has it held. Ignores a known one.
    pub(crate) fn add(&mut self, event: OutboxEvent, lanes: &mut [Lane; LANES]) {
        if self.known.contains_key(&event.seq) {
            return;
        }
        let is_behind = event.is_behind || self.held_of.contains(&event.user_id);
        if !is_behind && self.has_room(&event, lanes) {
            self.push(event, false, lanes);
            return;
        }
        match self.users.get_mut(&event.user_id) {
            Some(user) => user.has_held = true,
            None if is_behind => {}
            None => self.seek(&event),
        }
        self.held_of.insert(event.user_id);
        self.to_hold.push(event.seq);
    }

    /// Records that a read found no more new events.
    pub(crate) const fn catch_up(&mut self) {
        self.is_caught_up = true;
    }

    /// Takes events of a lane that [`Self::wanted`] asked for; there may be more after the position
    /// `after`.
    pub(crate) fn add_held(
        &mut self,
        of: usize,
        events: Vec<OutboxEvent>,
        after: Option<i64>,
        lanes: &mut [Lane; LANES],
    ) {
        self.last_read = of;
        self.held_after[of] = after;
        for event in events.into_iter().filter(|event| !event.is_behind) {
            if let Some(user) = self.users.get_mut(&event.user_id) {
                user.has_held = true;
            } else if self.has_room(&event, lanes) {
                self.push(event, true, lanes);
            } else {
                self.held_after[of] = Some(event.seq - 1);
                return;
            }
        }
    }

    /// Takes the next events of users whom [`Self::take_followers`] named.
    pub(crate) fn add_followers(&mut self, events: Vec<OutboxEvent>, lanes: &mut [Lane; LANES]) {
        let mut left = HashSet::new();
        for event in events {
            if !left.contains(&event.user_id) && self.has_room(&event, lanes) {
                self.push(event, true, lanes);
            } else if left.insert(event.user_id) && !self.users.contains_key(&event.user_id) {
                self.seek(&event);
            }
        }
    }

    fn has_room(&self, event: &OutboxEvent, lanes: &[Lane; LANES]) -> bool {
        let user = self.users.get(&event.user_id);
        // It waits in the lane of its user's first event, and later in its own.
        let first = self.first(event.user_id).map_or(event, Arc::as_ref);
        let is_full = |event: &OutboxEvent| {
            let lane = lane(&event.event_type);
            lanes[lane].is_full(self.buffered[lane])
        };
        let takes_more = |user: &User| user.events.len() < MOST_OF_A_USER && !user.is_rejected;
        user.is_none_or(takes_more) && !is_full(event) && !is_full(first)
    }

    fn push(&mut self, event: OutboxEvent, was_held: bool, lanes: &mut [Lane; LANES]) {
        let position = event.seq;
        self.known.insert(position, event.user_id);
        let follows = self.followers.contains(&event.user_id);
        let user = self.users.entry(event.user_id).or_default();
        user.has_held |= was_held || follows;
        user.events.push_back(Arc::new(event));
        let lane = lane(&user.events[0].event_type);
        self.buffered[lane] += 1;
        if user.events.len() == 1 {
            lanes[lane].push(position);
        }
    }

    /// Lets its lane find this event, the first held one of a user who is not in memory.
    fn seek(&mut self, event: &OutboxEvent) {
        let after = &mut self.held_after[lane(&event.event_type)];
        *after = Some(after.map_or(event.seq - 1, |before| before.min(event.seq - 1)));
    }

    /// The first event of its user is done; the next may go. Ignores one that was never in memory.
    pub(crate) fn forget(&mut self, event: &OutboxEvent, lanes: &mut [Lane; LANES]) {
        if self.known.remove(&event.seq).is_none() {
            return;
        }
        let Some(user) = self.users.get_mut(&event.user_id) else {
            return;
        };
        self.buffered[lane(&event.event_type)] -= user.events.len();
        user.events.pop_front();
        user.is_rejected = false;
        if let Some(next) = user.events.front() {
            let lane = lane(&next.event_type);
            self.buffered[lane] += user.events.len();
            lanes[lane].push(next.seq);
        } else if self
            .users
            .remove(&event.user_id)
            .is_some_and(|user| user.has_held)
        {
            self.follow(event.user_id);
        }
    }

    /// An event was rejected. Holds its user's next events: in memory they would leave no room for
    /// those that pass.
    pub(crate) fn reject(&mut self, event: &OutboxEvent) {
        let Some(user) = self.users.get_mut(&event.user_id) else {
            return;
        };
        if user
            .events
            .front()
            .is_none_or(|first| first.seq != event.seq)
        {
            return;
        }
        user.is_rejected = true;
        let following = user.events.split_off(1);
        if following.is_empty() {
            return;
        }
        user.has_held = true;
        self.held_of.insert(event.user_id);
        self.buffered[lane(&event.event_type)] -= following.len();
        for position in following.iter().map(|event| event.seq) {
            self.known.remove(&position);
            self.to_hold.push(position);
        }
    }

    /// Marks the next held events of this user to be read.
    pub(crate) fn follow(&mut self, user: i64) {
        self.followers.insert(user);
    }

    /// The users whose first held events to read, and how many of each; `None` if there are no such
    /// users.
    pub(crate) fn take_followers(&mut self) -> Option<(Vec<i64>, usize)> {
        if !self.is_caught_up {
            return None;
        }
        self.followers.retain(|user| !self.users.contains_key(user));
        let users: Vec<i64> = self
            .followers
            .iter()
            .copied()
            .take(MOST_FOLLOWERS)
            .collect();
        for user in &users {
            self.followers.remove(user);
        }
        let of_each = (MOST_FOLLOWERS / users.len().max(1)).min(MOST_OF_A_USER);
        (!users.is_empty()).then_some((users, of_each))
    }

    /// A lane whose held events may be read now, the position to read after, and how many.
    pub(crate) fn wanted(&self, lanes: &[Lane; LANES]) -> Option<(usize, i64, usize)> {
        let wanted = |lane: usize| {
            Some((
                lane,
                self.held_after[lane]?,
                lanes[lane].held_room(self.buffered[lane]),
            ))
        };
        let in_turn = (1..=LANES)
            .map(|n| (self.last_read + n) % LANES)
            .filter(|_| self.is_caught_up);
        in_turn.filter_map(wanted).find(|(.., room)| *room > 0)
    }

    /// Whether events wait to be held, or held ones may be read.
    pub(crate) fn has_work(&self, lanes: &[Lane; LANES]) -> bool {
        let has_followers = self.is_caught_up && !self.followers.is_empty();
        !self.to_hold.is_empty() || has_followers || self.wanted(lanes).is_some()
    }

    /// Users who may have held events besides those in memory.
    pub(crate) fn holders(&self) -> Vec<i64> {
        let in_memory = self
            .users
            .iter()
            .filter(|(_, user)| user.has_held)
            .map(|(user, _)| *user);
        in_memory.chain(self.followers.iter().copied()).collect()
    }

    /// Starts to go through all held events again: someone may have deleted some by hand that
    /// others wait behind.
    pub(crate) const fn sweep(&mut self) {
        self.held_after = [Some(0); LANES];
    }

    /// Takes the positions of events that must be held before anything else is read.
    pub(crate) fn take_to_hold(&mut self) -> Vec<i64> {
        self.held_of.clear();
        mem::take(&mut self.to_hold)
    }

    fn first(&self, user: i64) -> Option<&Arc<OutboxEvent>> {
        self.users.get(&user)?.events.front()
    }

    /// The event at a position, if it is the first of its user.
    pub(crate) fn event(&self, position: i64) -> Option<&Arc<OutboxEvent>> {
        self.first(*self.known.get(&position)?)
    }

    pub(crate) const fn buffered(&self, lane: usize) -> usize {
        self.buffered[lane]
    }

    /// Whether a lane may have held events that are not in memory.
    pub(crate) const fn has_held(&self, lane: usize) -> bool {
        self.held_after[lane].is_some()
    }

    /// The oldest event, if it is in memory.
    pub(crate) fn oldest(&self) -> Option<&OutboxEvent> {
        let position = *self.known.first_key_value()?.0;
        let is_oldest = self
            .held_after
            .iter()
            .flatten()
            .all(|after| *after >= position);
        self.event(position).filter(|_| is_oldest).map(Arc::as_ref)
    }

    /// The positions in memory after `position`, in order.
    pub(crate) fn known_after(&self, position: i64) -> Vec<i64> {
        self.known
            .range(position + 1..)
            .map(|(position, _)| *position)
            .collect()
    }

    /// What was read up to this position is done, or held; `None` if all is.
    pub(crate) fn settled(&self) -> Option<i64> {
        self.known
            .keys()
            .next()
            .into_iter()
            .chain(&self.to_hold)
            .min()
            .map(|position| position - 1)
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        let is_read = self.held_after.iter().all(Option::is_none) && self.followers.is_empty();
        self.known.is_empty() && self.to_hold.is_empty() && is_read
    }
}
