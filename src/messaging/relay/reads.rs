//! What to read next, and when: new rows as they come, held ones when there is room, and the whole
//! table of new ones from time to time.

use std::time::Duration;

use tokio::time::Instant;

use super::store::{Read, ReadDone, TIMEOUT};
use crate::messaging::schedule::Schedule;
use crate::messaging::watermark::Watermark;
use crate::repository::outbox::ReadFrom;
use crate::repository::outbox_event::OutboxEvent;

/// Rows in one read.
const BATCH: usize = 2_000;
/// How often an idle leader polls for rows from other replicas; this process's own commits wake it
/// immediately. Polling an empty outbox costs the database about 50 µs.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often to go through all held rows.
const SWEEP_INTERVAL: Duration = Duration::from_mins(15);
/// Fewest held rows in one read: most of them may be behind others of their users.
const FEWEST_HELD: usize = 200;
/// After this long without room for new rows, the lane that takes up the most is limited.
const NO_ROOM_FOR: Duration = Duration::from_millis(300);

pub(crate) struct Reads {
    /// There may be new rows.
    pub are_due: bool,
    began: Instant,
    last_was_new: bool,
    last_was_followers: bool,
    swept_at: Instant,
    /// Since when there has been no room for new rows.
    no_room_since: Option<Instant>,
}

impl Reads {
    pub(crate) fn starting(now: Instant) -> Self {
        Self {
            are_due: true,
            began: now,
            last_was_new: false,
            last_was_followers: false,
            swept_at: now,
            no_room_since: None,
        }
    }

    /// Alternates between new and held rows; among held ones, between those of a lane and those of
    /// some users.
    pub(crate) fn next(
        &mut self,
        schedule: &mut Schedule,
        watermark: &mut Watermark,
        now: Instant,
    ) -> Option<Read> {
        let new = if self.last_was_new {
            None
        } else {
            self.next_new(schedule, watermark, now)
        };
        let read = new
            .or_else(|| self.next_held(schedule, now))
            .or_else(|| self.next_new(schedule, watermark, now));
        self.last_was_new = matches!(&read, Some(Read::New { .. }));
        read
    }

    fn next_new(
        &mut self,
        schedule: &mut Schedule,
        watermark: &mut Watermark,
        now: Instant,
    ) -> Option<Read> {
        let limit = schedule.room().min(BATCH);
        let is_due = self.are_due || now >= self.began + POLL_INTERVAL;
        let has_room = limit >= BATCH / 2 || limit > 0 && schedule.in_flight() == 0;
        if is_due && !has_room && now - *self.no_room_since.get_or_insert(now) >= NO_ROOM_FOR {
            schedule.make_room();
        }
        if has_room {
            self.no_room_since = None;
        }
        if !is_due || !has_room {
            return None;
        }
        self.are_due = false;
        self.began = now;
        let is_whole = watermark.whole_read_is_due(now);
        let is_patient = watermark.needs_patience(now);
        let (from, known) = if is_whole {
            watermark.begin_whole_read(now, TIMEOUT);
            (ReadFrom::position(0), schedule.backlog.known_after(0))
        } else {
            (
                watermark.start(),
                schedule.backlog.known_after(watermark.lowest_start()),
            )
        };
        let holders = schedule.backlog.holders();
        let long_running = watermark.long_running(now);
        Some(Read::New {
            from,
            known,
            holders,
            limit,
            is_whole,
            is_patient,
            long_running,
        })
    }

    fn next_held(&mut self, schedule: &mut Schedule, now: Instant) -> Option<Read> {
        if now - self.swept_at >= SWEEP_INTERVAL {
            self.swept_at = now;
            schedule.backlog.sweep();
        }
        let of_lane = if self.last_was_followers {
            of_a_lane(schedule)
        } else {
            None
        };
        let read = of_lane
            .or_else(|| of_followers(schedule))
            .or_else(|| of_a_lane(schedule));
        self.last_was_followers = matches!(&read, Some(Read::Followers { .. }));
        read
    }

    /// Hands the rows to the schedule, and returns those that cannot be published.
    pub(crate) fn finish(
        &mut self,
        done: ReadDone,
        schedule: &mut Schedule,
        watermark: &mut Watermark,
    ) -> Vec<OutboxEvent> {
        let is_cut = done.is_cut();
        let ReadDone {
            read,
            events,
            snapshot,
            idle,
            took,
        } = done;
        let last = events.last().map(|event| event.seq);
        let (faulty, events): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| event.fault.is_some());
        match read {
            Read::New { is_whole, .. } => {
                if is_whole {
                    watermark.note_whole_read(self.began, took);
                }
                watermark.note_read(self.began, &idle, &snapshot, last, is_cut, is_whole);
                self.are_due |= is_cut;
                for event in events {
                    schedule.add(event);
                }
                if !is_cut {
                    schedule.backlog.catch_up();
                }
            }
            Read::Held { lane, .. } => schedule.add_held(lane, events, last.filter(|_| is_cut)),
            Read::Followers { .. } => schedule.add_followers(events),
        }
        faulty
    }
}

fn of_followers(schedule: &mut Schedule) -> Option<Read> {
    let (users, of_each) = schedule.backlog.take_followers()?;
    Some(Read::Followers { users, of_each })
}

fn of_a_lane(schedule: &Schedule) -> Option<Read> {
    let (lane, after, room) = schedule.wanted()?;
    let known = schedule.backlog.known_after(after);
    let holders = schedule.backlog.holders();
    Some(Read::Held {
        lane,
        after,
        known,
        holders,
        limit: room.clamp(FEWEST_HELD, BATCH),
    })
}
