//! Where to start reading the outbox. While somebody holds an old snapshot, deleted rows cannot be cleaned away, and a
//! read from the beginning walks over all of them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// A read from the beginning that takes longer than this is worth avoiding.
const SLOW: Duration = Duration::from_millis(10);
/// Even then, how often to read from the beginning.
const FULL_READ_INTERVAL: Duration = Duration::from_secs(30);
/// A place is safe when it was passed this long ago: a row drawn before it and committed after it would have been
/// written by a statement that ran for so long, and `statement_timeout` is far shorter.
const SAFE_AFTER: Duration = Duration::from_secs(10);
/// Distance between two remembered places.
const STEP: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Watermark {
    /// When everything up to a place was seen to be deleted; oldest first.
    passed: VecDeque<(Instant, i64)>,
    full_read_at: Option<Instant>,
    full_read_took: Duration,
}

impl Default for Watermark {
    fn default() -> Self {
        Self { passed: VecDeque::new(), full_read_at: None, full_read_took: Duration::ZERO }
    }
}

impl Watermark {
    /// The place after which to read; 0 is the beginning.
    pub fn start(&self, now: Instant) -> i64 {
        let full_read_is_due = self.full_read_at.is_none_or(|at| now - at >= FULL_READ_INTERVAL);
        if full_read_is_due || self.full_read_took < SLOW {
            return 0;
        }
        let safe = self.passed.iter().rev().find(|(at, _)| now - *at >= SAFE_AFTER);
        safe.map_or(0, |(_, place)| *place)
    }

    /// A read from `start` took so long.
    pub fn note_read(&mut self, start: i64, now: Instant, took: Duration) {
        if start == 0 {
            self.full_read_at = Some(now);
            self.full_read_took = took;
        }
    }

    /// Everything up to `place` is deleted.
    pub fn note_deleted(&mut self, place: i64, now: Instant) {
        if self.passed.back().is_none_or(|(at, _)| now - *at >= STEP) {
            self.passed.push_back((now, place));
        }
        while self.passed.get(1).is_some_and(|(at, _)| now - *at >= SAFE_AFTER) {
            self.passed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{FULL_READ_INTERVAL, SAFE_AFTER, SLOW, Watermark};

    /// One place a second, up to `seconds`.
    fn after(seconds: u64, read_took: Duration) -> (Watermark, Instant) {
        let (mut watermark, start) = (Watermark::default(), Instant::now());
        for second in 0..=seconds {
            watermark.note_deleted(i64::try_from(second).unwrap() * 100, start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(seconds);
        watermark.note_read(0, now, read_took);
        (watermark, now)
    }

    #[test]
    fn a_quick_read_starts_at_the_beginning() {
        let (watermark, now) = after(20, SLOW / 2);
        assert_eq!(watermark.start(now), 0);
    }

    #[test]
    fn a_slow_read_is_followed_by_reads_from_the_place_of_ten_seconds_ago() {
        let (watermark, now) = after(20, SLOW);
        assert_eq!(watermark.start(now), 1000);
    }

    #[test]
    fn nothing_younger_than_ten_seconds_is_safe() {
        let (watermark, now) = after(SAFE_AFTER.as_secs() - 1, SLOW);
        assert_eq!(watermark.start(now), 0);
    }

    #[test]
    fn the_beginning_is_read_again_from_time_to_time() {
        let (watermark, now) = after(20, SLOW);
        assert_eq!(watermark.start(now + FULL_READ_INTERVAL), 0);
    }

    #[test]
    fn memory_is_bounded() {
        let (watermark, _) = after(10_000, SLOW);
        assert!(watermark.passed.len() <= 12, "{}", watermark.passed.len());
    }
}
