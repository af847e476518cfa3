//! Where to read the outbox. A row gets its position when it is written, but becomes visible when
//! its transaction commits, so rows can appear before positions already read. Only transactions
//! running at that read can write such rows. A snapshot tells which of them have ended; a clock
//! cannot, because a commit may take longer than any constant.
//! <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::repository::outbox::{ReadFrom, Snapshot};

/// Whole-table reads take at most one part in this many of the time, because they scan all dead
/// rows that vacuum cannot remove yet.
const WHOLE_READS: u32 = 1_000;
/// A shorter whole-table read counts as long only if the one before was long too: a stalling
/// machine makes any read look long.
const SURELY_LONG: Duration = Duration::from_secs(1);
/// A crash of PostgreSQL may lose deletions that are this recent. More than three times
/// `wal_writer_delay`.
/// <https://www.postgresql.org/docs/current/wal-async-commit.html>
const FORGOTTEN: Duration = Duration::from_secs(2);

/// Transactions that have run this long are checked this often: their rows may be far behind.
const LONG: Duration = Duration::from_secs(10);
/// Most transactions to remember. A transaction with many savepoints elsewhere in the cluster may
/// have used up any number of transaction ids since the last commit.
const MOST_RUNNING: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Watermark {
    /// Start time of the server that this describes.
    server: Option<DateTime<Utc>>,
    /// Rows after this position are new.
    position: i64,
    /// Transactions that were running at the last read, by number.
    running: BTreeMap<i64, Running>,
    /// When those that run for long were last looked at.
    looked_at: Option<Instant>,
    whole_read: Option<WholeRead>,
    /// The last read timed out, and ended its session.
    is_slow: bool,
    /// Recent deletions: when, and the lowest position.
    removed: VecDeque<(Instant, i64)>,
}

/// The last read of the whole table.
#[derive(Debug)]
struct WholeRead {
    began: Instant,
    took: Duration,
    /// How long a whole-table read takes, judged by this one and the one before.
    cost: Duration,
}

#[derive(Debug)]
struct Running {
    /// Its rows are after this position, the watermark at some time before it drew its first one: a
    /// transaction gets its number earlier.
    start: i64,
    /// When that became known.
    since: Instant,
}

impl Watermark {
    /// Forgets everything if this is another server, or if it has restarted.
    pub(crate) fn begin_on(&mut self, server: DateTime<Utc>) {
        if self.server != Some(server) {
            *self = Self {
                server: Some(server),
                ..Self::default()
            };
        }
    }

    /// Where to look for new rows: after the watermark, or further back where an earlier
    /// transaction has ended.
    pub(crate) fn start(&self) -> ReadFrom {
        let (running, starts) = self
            .running
            .iter()
            .map(|(number, it)| (*number, it.start))
            .unzip();
        ReadFrom {
            after: self.position,
            running,
            starts,
        }
    }

    /// Long-running transactions to check before the next read: have they written to the outbox? An
    /// hour of dead rows, which vacuum cannot remove while they run, may lie between their start
    /// and the new rows.
    pub(crate) fn long_running(&mut self, now: Instant) -> Vec<i64> {
        if self.looked_at.is_some_and(|at| now - at < LONG) {
            return Vec::new();
        }
        let long = self.running.iter().filter(|(_, it)| now - it.since >= LONG);
        let long: Vec<i64> = long.map(|(number, _)| *number).collect();
        if !long.is_empty() {
            self.looked_at = Some(now);
        }
        long
    }

    /// Whether to read the whole table: at the start, and from time to time. Rows written by hand
    /// may have drawn their positions before their transaction had a number.
    pub(crate) fn whole_read_is_due(&self, now: Instant) -> bool {
        self.whole_read
            .as_ref()
            .is_none_or(|read| !self.is_slow && now - read.began >= read.cost * WHOLE_READS)
    }

    /// Whether the next read may take long: it is the first, or the last one timed out, or a
    /// transaction that wrote long ago may have ended.
    pub(crate) fn needs_patience(&self, now: Instant) -> bool {
        let mut running = self.running.values();
        self.is_slow || self.whole_read.is_none() || running.any(|it| now - it.since >= 2 * LONG)
    }

    pub(crate) const fn note_slow_read(&mut self) {
        self.is_slow = true;
    }

    /// Records that a whole-table read has begun. If it ends the session by exceeding `limit`, it
    /// counts as one that took that long.
    pub(crate) const fn begin_whole_read(&mut self, now: Instant, limit: Duration) {
        if let Some(read) = &mut self.whole_read {
            read.began = now;
            read.cost = limit;
        }
    }

    pub(crate) fn note_whole_read(&mut self, began: Instant, took: Duration) {
        let before = self
            .whole_read
            .as_ref()
            .map_or(Duration::ZERO, |read| read.took);
        let cost = if took < SURELY_LONG {
            took.min(before)
        } else {
            took
        };
        self.whole_read = Some(WholeRead { began, took, cost });
    }

    /// The lowest position from which [`Self::start`] may read.
    pub(crate) fn lowest_start(&self) -> i64 {
        self.running
            .values()
            .map(|it| it.start)
            .chain([self.position])
            .min()
            .unwrap_or_default()
    }

    /// Records what a read saw, up to its `last` row; `cut` if there were more, `whole` if it began
    /// at the first row. `idle` are the long-running transactions that had written nothing to the
    /// outbox before the read.
    pub(crate) fn note_read(
        &mut self,
        now: Instant,
        idle: &[i64],
        snapshot: &Snapshot,
        last: Option<i64>,
        cut: bool,
        whole: bool,
    ) {
        let mut position = self.position;
        self.is_slow = false;
        // Ended ones first: an idle one that has ended since may have written after all, but this
        // read began at its start.
        self.running
            .retain(|number, _| snapshot.is_running(*number));
        for number in idle {
            self.running.entry(*number).and_modify(|it| {
                *it = Running {
                    start: position,
                    since: now,
                }
            });
        }
        let Some(last) = last else { return };
        if snapshot.all_running().nth(MOST_RUNNING).is_some() {
            // The next read begins no later than where this one ended; rows that it reads again are
            // known.
            self.position = position.min(last);
            return;
        }
        if whole && last < position {
            // Someone has set the sequence back, so running transactions may have drawn any
            // position.
            position = 0;
            self.running.clear();
        }
        // New transactions have drawn no position before the watermark, which moves with each row
        // that is read.
        for number in snapshot.all_running() {
            self.running.entry(number).or_insert(Running {
                start: position,
                since: now,
            });
        }
        self.position = if cut || whole {
            last
        } else {
            position.max(last)
        };
    }

    /// Records that rows were removed, from this position on.
    pub(crate) fn note_removed(&mut self, now: Instant, lowest: i64) {
        self.removed.retain(|(at, _)| now - *at < FORGOTTEN);
        self.removed.push_back((now, lowest));
    }

    /// Goes back after a session: rows after `settled`, and those removed recently, must be read
    /// again.
    pub(crate) fn rewind(&mut self, settled: Option<i64>) {
        let removed = self.removed.drain(..).map(|(_, lowest)| lowest - 1);
        self.position = removed
            .chain(settled)
            .chain([self.position])
            .min()
            .unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::mem;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::{FORGOTTEN, LONG, SURELY_LONG, WHOLE_READS, Watermark};
    use crate::repository::outbox::Snapshot;

    #[derive(Clone, Debug)]
    enum Action {
        Begin,
        /// A running transaction draws a position.
        Write(prop::sample::Index),
        /// A running transaction ends.
        Commit(prop::sample::Index),
        /// Checks which running transactions have drawn no position.
        Look,
        Read {
            limit: usize,
        },
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            Just(Action::Begin),
            any::<prop::sample::Index>().prop_map(Action::Write),
            any::<prop::sample::Index>().prop_map(Action::Commit),
            Just(Action::Look),
            (1..6_usize).prop_map(|limit| Action::Read { limit }),
        ]
    }

    /// A table without deletions.
    #[derive(Default)]
    struct Table {
        numbers: i64,
        positions: i64,
        last_ended: i64,
        /// Numbers, and the positions that were drawn.
        running: Vec<(i64, Vec<i64>)>,
        visible: BTreeSet<i64>,
        read: BTreeSet<i64>,
        /// Transactions that had drawn no position when they were checked.
        idle: Vec<i64>,
    }

    impl Table {
        fn read(&mut self, watermark: &mut Watermark, limit: usize) {
            let next = self.last_ended + 1;
            let running = self
                .running
                .iter()
                .map(|(number, _)| *number)
                .filter(|number| *number < next)
                .collect();
            let mut snapshot = Snapshot {
                next,
                running,
                given_later: None,
            };
            let from = watermark.start();
            let starts = from.running.iter().zip(&from.starts);
            let ended = starts
                .filter(|(number, _)| !snapshot.is_running(**number))
                .map(|(_, start)| *start);
            let start = ended.chain([from.after]).min().unwrap();
            assert!(start >= watermark.lowest_start());
            let rows = self
                .visible
                .range(start + 1..)
                .filter(|position| !self.read.contains(position));
            let rows: Vec<i64> = rows.take(limit).copied().collect();
            let is_cut = rows.len() == limit;
            if !rows.is_empty() {
                self.numbers += 1;
                snapshot.given_later = Some(self.numbers);
                self.last_ended = self.numbers;
            }
            let idle = mem::take(&mut self.idle);
            watermark.note_read(
                Instant::now(),
                &idle,
                &snapshot,
                rows.last().copied(),
                is_cut,
                false,
            );
            self.read.extend(&rows);
            // Every visible row up to the last one read has been read.
            let up_to = if is_cut {
                *rows.last().unwrap()
            } else {
                i64::MAX
            };
            assert!(
                self.visible
                    .range(..=up_to)
                    .all(|position| self.read.contains(position)),
                "a row is passed over"
            );
        }
    }

    #[test]
    fn the_next_session_rereads_positions_that_were_removed_lately() {
        let mut watermark = Watermark {
            position: 100,
            ..Watermark::default()
        };
        let now = Instant::now();
        watermark.note_removed(now, 10);
        watermark.note_removed(now + FORGOTTEN, 60);
        watermark.note_removed(now + FORGOTTEN, 50);
        watermark.rewind(Some(90));
        assert_eq!(watermark.position, 49);
    }

    #[test]
    fn a_read_of_the_whole_table_finds_a_sequence_set_back() {
        let mut watermark = Watermark::default();
        let now = Instant::now();
        let seen = |running: &[i64]| Snapshot {
            next: 100,
            running: running.to_vec(),
            given_later: Some(100),
        };
        watermark.note_read(now, &[], &seen(&[]), Some(1_000), false, false);
        watermark.note_read(now, &[], &seen(&[7]), Some(5), false, true);
        assert_eq!((watermark.position, watermark.lowest_start()), (5, 0));
        watermark.note_read(now, &[], &seen(&[]), Some(6), false, false);
        assert_eq!((watermark.position, watermark.lowest_start()), (6, 6));
    }

    #[test]
    fn a_transaction_range_too_large_to_remember_is_read_again() {
        let mut watermark = Watermark::default();
        let now = Instant::now();
        let seen = |next, given_later| Snapshot {
            next,
            running: Vec::new(),
            given_later: Some(given_later),
        };
        watermark.note_read(now, &[], &seen(100, 101), Some(10), false, false);
        watermark.note_read(now, &[], &seen(1_000, 9_000_000), Some(20), false, false);
        assert_eq!((watermark.position, watermark.running.len()), (10, 0));
        watermark.note_read(
            now,
            &[],
            &seen(9_000_001, 9_000_002),
            Some(30),
            false,
            false,
        );
        assert_eq!(watermark.position, 30);
        // It began further back, where a transaction had ended, and did not get to the end.
        watermark.note_read(
            now,
            &[],
            &seen(9_000_010, 19_000_000),
            Some(15),
            true,
            false,
        );
        assert_eq!(watermark.position, 15);
    }

    #[test]
    fn a_long_transaction_is_read_from_where_it_had_written_nothing() {
        let mut watermark = Watermark::default();
        let now = Instant::now();
        let seen = |given_later| Snapshot {
            next: 10,
            running: vec![7],
            given_later: Some(given_later),
        };
        watermark.note_whole_read(now, LONG);
        watermark.note_read(now, &[], &seen(11), Some(100), false, false);
        assert_eq!(watermark.long_running(now), [] as [i64; 0]);
        let later = now + LONG;
        assert_eq!(watermark.long_running(later), [7, 10]);
        assert_eq!(
            watermark.long_running(later),
            [] as [i64; 0],
            "not at once again"
        );
        watermark.note_read(later, &[7], &seen(12), Some(200), false, false);
        assert_eq!(
            (watermark.running[&7].start, watermark.running[&10].start),
            (100, 0)
        );
        assert!(watermark.needs_patience(later + LONG));
    }

    #[test]
    fn a_stall_in_one_whole_table_read_does_not_delay_the_next() {
        let mut watermark = Watermark::default();
        let now = Instant::now();
        let ms = Duration::from_millis;
        let pause = |watermark: &Watermark| {
            (0..1_000_001).find(|&ms_later| watermark.whole_read_is_due(now + ms(ms_later)))
        };
        watermark.note_whole_read(now, ms(300));
        assert_eq!(
            pause(&watermark),
            Some(0),
            "the first may have been held up"
        );
        watermark.note_whole_read(now, ms(2));
        assert_eq!(pause(&watermark), Some(2_000));
        watermark.note_whole_read(now, ms(300));
        assert_eq!(pause(&watermark), Some(2_000));
        watermark.note_whole_read(now, ms(400));
        assert_eq!(pause(&watermark), Some(300_000), "not a stall");
        watermark.note_whole_read(now, ms(1));
        watermark.note_whole_read(now, SURELY_LONG);
        assert_eq!(pause(&watermark), Some(1_000_000));
    }

    #[test]
    fn an_unfinished_whole_table_read_is_due_again_after_a_pause() {
        let mut watermark = Watermark::default();
        let mut now = Instant::now();
        let nothing = Snapshot {
            next: 1,
            running: Vec::new(),
            given_later: None,
        };
        watermark.note_whole_read(now, SURELY_LONG);
        now += SURELY_LONG * WHOLE_READS;
        assert!(watermark.whole_read_is_due(now));
        watermark.begin_whole_read(now, LONG);
        watermark.note_slow_read();
        watermark.note_read(now, &[], &nothing, None, false, false);
        assert!(!watermark.whole_read_is_due(now + LONG));
        assert!(watermark.whole_read_is_due(now + LONG * WHOLE_READS));
    }

    #[test]
    fn the_read_after_an_unfinished_one_gets_more_time() {
        let mut watermark = Watermark::default();
        let now = Instant::now();
        let nothing = Snapshot {
            next: 1,
            running: Vec::new(),
            given_later: None,
        };
        assert!(watermark.whole_read_is_due(now) && watermark.needs_patience(now));
        watermark.note_whole_read(now, Duration::ZERO);
        watermark.note_read(now, &[], &nothing, None, false, true);
        assert!(watermark.whole_read_is_due(now) && !watermark.needs_patience(now));
        watermark.note_slow_read();
        assert!(!watermark.whole_read_is_due(now) && watermark.needs_patience(now));
    }

    proptest! {
        #[test]
        fn no_row_is_skipped_in_any_order_of_commits(actions in prop::collection::vec(action(), 0..200)) {
            let mut table = Table::default();
            let mut watermark = Watermark::default();
            for action in actions {
                match action {
                    Action::Begin => {
                        table.numbers += 1;
                        table.running.push((table.numbers, Vec::new()));
                    }
                    Action::Look => {
                        let idle = table.running.iter().filter(|(_, positions)| positions.is_empty());
                        table.idle = idle.map(|(number, _)| *number).collect();
                    }
                    Action::Read { limit } => table.read(&mut watermark, limit),
                    _ if table.running.is_empty() => {}
                    Action::Write(which) => {
                        table.positions += 1;
                        let position = table.positions;
                        which.get_mut(&mut table.running).1.push(position);
                    }
                    Action::Commit(which) => {
                        let (number, positions) = table.running.remove(which.index(table.running.len()));
                        table.last_ended = number.max(table.last_ended);
                        table.visible.extend(positions);
                    }
                }
            }
            table.read(&mut watermark, usize::MAX);
        }
    }
}
