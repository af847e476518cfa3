//! Where to read the outbox. A row gets its place when it is written, but becomes visible when its transaction commits, so rows can
//! appear before places already read. Only transactions running at that read can write such rows. A snapshot tells which of them
//! have ended; a clock cannot, because a commit may take longer than any constant.
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::repository::outbox::{ReadFrom, Snapshot};

/// Whole-table reads take at most one part in this many of the time: they scan all dead rows that vacuum cannot remove yet.
const WHOLE_READS: u32 = 1_000;
/// After a crash, PostgreSQL may have lost deletions from within this time, which is more than three times `wal_writer_delay`.
/// <https://www.postgresql.org/docs/current/wal-async-commit.html>
const FORGOTTEN: Duration = Duration::from_secs(2);

/// Most transactions to remember. Elsewhere in the cluster, one with many savepoints may have used up any number of transaction ids
/// since something was last committed.
const MOST_RUNNING: usize = 10_000;

#[derive(Debug, Default)]
pub struct Horizon {
    /// Start time of the server that this describes.
    server: Option<DateTime<Utc>>,
    /// Rows after this place are new.
    frontier: i64,
    /// Transactions that were running at the last read, each with the frontier when it was first seen. Their rows are after it,
    /// because a transaction gets its number before it draws a place.
    running: BTreeMap<i64, i64>,
    whole_read: Option<(Instant, Duration)>,
    /// The last read timed out, and ended its session.
    is_slow: bool,
    /// Recent deletions: when, and the lowest place.
    removed: VecDeque<(Instant, i64)>,
}

impl Horizon {
    /// Forgets everything if the server is another one, or has restarted.
    pub fn begin_on(&mut self, server: DateTime<Utc>) {
        if self.server != Some(server) {
            *self = Self { server: Some(server), ..Self::default() };
        }
    }

    /// Where new rows are: after the frontier, or further back where an earlier transaction has ended.
    pub fn start(&self) -> ReadFrom {
        let (running, starts) = self.running.iter().map(|(number, start)| (*number, *start)).unzip();
        ReadFrom { after: self.frontier, running, starts }
    }

    /// Whether to read the whole table: at the start, and from time to time. Rows written by hand may have drawn their
    /// places before their transaction had a number.
    pub fn whole_read_is_due(&self, now: Instant) -> bool {
        self.whole_read.is_none_or(|(at, took)| !self.is_slow && now - at >= took * WHOLE_READS)
    }

    /// Whether the next read may take long: it is the first, or the last one timed out.
    pub const fn needs_patience(&self) -> bool {
        self.is_slow || self.whole_read.is_none()
    }

    pub const fn note_slow_read(&mut self) {
        self.is_slow = true;
    }

    pub fn note_whole_read(&mut self, now: Instant, took: Duration) {
        self.whole_read = Some((now, took));
    }

    /// The lowest place from which [`Self::start`] may read.
    pub fn lowest_start(&self) -> i64 {
        self.running.values().copied().min().map_or(self.frontier, |start| start.min(self.frontier))
    }

    /// Records what a read saw, up to its `last` row; `cut` if there were more, `whole` if it began at the first row.
    pub fn note_read(&mut self, snapshot: &Snapshot, last: Option<i64>, cut: bool, whole: bool) {
        let mut frontier = self.frontier;
        self.is_slow = false;
        self.running.retain(|number, _| snapshot.is_running(*number));
        let Some(last) = last else { return };
        if snapshot.all_running().nth(MOST_RUNNING).is_some() {
            // The next read begins where this one did; what it reads again is known.
            return;
        }
        if whole && last < frontier {
            // Somebody has set the sequence back, so those that run may have drawn any place.
            frontier = 0;
            self.running.clear();
        }
        // New transactions have drawn no place before the current frontier, which moves with each row that is read.
        for number in snapshot.all_running() {
            self.running.entry(number).or_insert(frontier);
        }
        self.frontier = if cut || whole { last } else { frontier.max(last) };
    }

    /// Records that rows were removed, from this place on.
    pub fn note_removed(&mut self, now: Instant, lowest: i64) {
        self.removed.retain(|(at, _)| now - *at < FORGOTTEN);
        self.removed.push_back((now, lowest));
    }

    /// The session is over: rows after `settled`, and those removed recently, must be read again.
    pub fn rewind(&mut self, settled: Option<i64>) {
        let removed = self.removed.drain(..).map(|(_, lowest)| lowest - 1);
        self.frontier = removed.chain(settled).chain([self.frontier]).min().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{FORGOTTEN, Horizon};
    use crate::repository::outbox::Snapshot;

    #[derive(Clone, Debug)]
    enum Action {
        Begin,
        /// One of the transactions that run draws a place.
        Write(prop::sample::Index),
        /// One of them ends, and is seen to have.
        Commit(prop::sample::Index),
        Read {
            limit: usize,
        },
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            Just(Action::Begin),
            any::<prop::sample::Index>().prop_map(Action::Write),
            any::<prop::sample::Index>().prop_map(Action::Commit),
            (1..6_usize).prop_map(|limit| Action::Read { limit }),
        ]
    }

    /// A table whose rows nobody deletes.
    #[derive(Default)]
    struct Table {
        numbers: i64,
        places: i64,
        last_ended: i64,
        /// Numbers, and the places that were drawn.
        running: Vec<(i64, Vec<i64>)>,
        visible: BTreeSet<i64>,
        read: BTreeSet<i64>,
    }

    impl Table {
        fn read(&mut self, horizon: &mut Horizon, limit: usize) {
            let next = self.last_ended + 1;
            let running = self.running.iter().map(|(number, _)| *number).filter(|number| *number < next).collect();
            let mut snapshot = Snapshot { next, running, given_later: None };
            let from = horizon.start();
            let starts = from.running.iter().zip(&from.starts);
            let ended = starts.filter(|(number, _)| !snapshot.is_running(**number)).map(|(_, start)| *start);
            let start = ended.chain([from.after]).min().unwrap();
            assert!(start >= horizon.lowest_start());
            let rows = self.visible.range(start + 1..).filter(|place| !self.read.contains(place));
            let rows: Vec<i64> = rows.take(limit).copied().collect();
            let is_cut = rows.len() == limit;
            if !rows.is_empty() {
                self.numbers += 1;
                (snapshot.given_later, self.last_ended) = (Some(self.numbers), self.numbers);
            }
            horizon.note_read(&snapshot, rows.last().copied(), is_cut, false);
            self.read.extend(&rows);
            // Whoever is published now has nothing before it that is not.
            let up_to = if is_cut { *rows.last().unwrap() } else { i64::MAX };
            assert!(self.visible.range(..=up_to).all(|place| self.read.contains(place)), "a row is passed over");
        }
    }

    #[test]
    fn what_was_removed_of_late_is_read_again_by_the_next_session() {
        let (mut horizon, now) = (Horizon { frontier: 100, ..Horizon::default() }, Instant::now());
        horizon.note_removed(now, 10);
        horizon.note_removed(now + FORGOTTEN, 60);
        horizon.note_removed(now + FORGOTTEN, 50);
        horizon.rewind(Some(90));
        assert_eq!(horizon.frontier, 49);
    }

    #[test]
    fn a_read_of_the_whole_table_finds_a_sequence_that_was_set_back() {
        let mut horizon = Horizon::default();
        let seen = |running: &[i64]| Snapshot { next: 100, running: running.to_vec(), given_later: Some(100) };
        horizon.note_read(&seen(&[]), Some(1_000), false, false);
        horizon.note_read(&seen(&[7]), Some(5), false, true);
        assert_eq!((horizon.frontier, horizon.lowest_start()), (5, 0));
        horizon.note_read(&seen(&[]), Some(6), false, false);
        assert_eq!((horizon.frontier, horizon.lowest_start()), (6, 6));
    }

    #[test]
    fn a_range_of_transactions_that_is_too_large_to_remember_is_read_again() {
        let mut horizon = Horizon::default();
        let seen = |next, given_later| Snapshot { next, running: Vec::new(), given_later: Some(given_later) };
        horizon.note_read(&seen(100, 101), Some(10), false, false);
        horizon.note_read(&seen(1_000, 9_000_000), Some(20), false, false);
        assert_eq!((horizon.frontier, horizon.running.len()), (10, 0));
        horizon.note_read(&seen(9_000_001, 9_000_002), Some(30), false, false);
        assert_eq!(horizon.frontier, 30);
    }

    #[test]
    fn the_read_after_one_that_did_not_end_is_given_time() {
        let (mut horizon, now) = (Horizon::default(), Instant::now());
        let nothing = Snapshot { next: 1, running: Vec::new(), given_later: None };
        assert!(horizon.whole_read_is_due(now) && horizon.needs_patience());
        horizon.note_whole_read(now, std::time::Duration::ZERO);
        horizon.note_read(&nothing, None, false, true);
        assert!(horizon.whole_read_is_due(now) && !horizon.needs_patience());
        horizon.note_slow_read();
        assert!(!horizon.whole_read_is_due(now) && horizon.needs_patience());
    }

    proptest! {
        #[test]
        fn no_row_is_passed_over_whatever_is_committed_when(actions in prop::collection::vec(action(), 0..200)) {
            let (mut table, mut horizon) = (Table::default(), Horizon::default());
            for action in actions {
                match action {
                    Action::Begin => {
                        table.numbers += 1;
                        table.running.push((table.numbers, Vec::new()));
                    }
                    Action::Read { limit } => table.read(&mut horizon, limit),
                    _ if table.running.is_empty() => {}
                    Action::Write(which) => {
                        table.places += 1;
                        let place = table.places;
                        which.get_mut(&mut table.running).1.push(place);
                    }
                    Action::Commit(which) => {
                        let (number, places) = table.running.remove(which.index(table.running.len()));
                        table.last_ended = number.max(table.last_ended);
                        table.visible.extend(places);
                    }
                }
            }
            table.read(&mut horizon, usize::MAX);
        }
    }
}
