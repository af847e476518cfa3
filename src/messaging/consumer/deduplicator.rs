//! Tells repeated messages from new ones.

use lru::LruCache;
use uuid::Uuid;

use crate::messaging::message::ReceivedEvent;

/// Events and users remembered. The least recently seen are forgotten first.
const REMEMBERED: usize = 65_536;
/// How far a version may be behind the newest to count as stale. Anyone may publish any version: a
/// made-up one must not make all later ones stale.
const STALE_WITHIN: i64 = 1_000;

/// Deduplicates all deliveries by event id. AMQP's `redelivered` flag is not enough: a publisher
/// that repeats an event after a lost confirm does not set it.
pub(crate) struct Deduplicator {
    events: LruCache<Uuid, ()>,
    versions: LruCache<i64, i64>,
}

/// How a message relates to those before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// The same event was received before.
    pub duplicate: bool,
    /// A change of this user with the same or a later version was received before.
    pub stale: bool,
}

impl Default for Deduplicator {
    fn default() -> Self {
        // Unbounded, because a bounded cache allocates its full size immediately.
        Self {
            events: LruCache::unbounded(),
            versions: LruCache::unbounded(),
        }
    }
}

impl Deduplicator {
    pub(crate) fn note(&mut self, event: &ReceivedEvent) -> Freshness {
        let duplicate = self.events.put(event.event_id, ()).is_some();
        let behind = self
            .versions
            .get(&event.user_id)
            .map(|newest| newest.saturating_sub(event.version));
        let stale = behind.is_some_and(|behind| (0..STALE_WITHIN).contains(&behind));
        if !stale {
            self.versions.put(event.user_id, event.version);
        }
        if self.events.len() > REMEMBERED {
            self.events.pop_lru();
        }
        if self.versions.len() > REMEMBERED {
            self.versions.pop_lru();
        }
        Freshness { duplicate, stale }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::{Deduplicator, Freshness, REMEMBERED, ReceivedEvent};

    fn event(user_id: i64, version: i64) -> ReceivedEvent {
        let event_type = "user.updated".to_owned();
        ReceivedEvent {
            event_type,
            user_id,
            trace_id: "t".to_owned(),
            event_id: Uuid::now_v7(),
            version,
        }
    }

    #[test]
    fn the_first_delivery_is_new_and_the_second_a_duplicate() {
        let mut deduplicator = Deduplicator::default();
        let first = event(1, 1);
        assert_eq!(
            deduplicator.note(&first),
            Freshness {
                duplicate: false,
                stale: false
            }
        );
        assert_eq!(
            deduplicator.note(&first),
            Freshness {
                duplicate: true,
                stale: true
            }
        );
        assert_eq!(
            deduplicator.note(&event(1, 2)),
            Freshness {
                duplicate: false,
                stale: false
            }
        );
    }

    #[test]
    fn an_older_version_after_a_newer_one_is_stale() {
        let mut deduplicator = Deduplicator::default();
        deduplicator.note(&event(1, 5));
        assert_eq!(
            deduplicator.note(&event(1, 4)),
            Freshness {
                duplicate: false,
                stale: true
            }
        );
        assert_eq!(
            deduplicator.note(&event(2, 1)),
            Freshness {
                duplicate: false,
                stale: false
            }
        );
    }

    #[test]
    fn a_forged_version_does_not_make_the_real_ones_stale() {
        for made_up in [i64::MAX, 1_000_000, i64::MIN, 0, -1] {
            let mut deduplicator = Deduplicator::default();
            deduplicator.note(&event(1, 5));
            deduplicator.note(&event(1, made_up));
            assert_eq!(
                deduplicator.note(&event(1, 6)),
                Freshness {
                    duplicate: false,
                    stale: false
                },
                "{made_up}"
            );
            assert_eq!(
                deduplicator.note(&event(1, 5)),
                Freshness {
                    duplicate: false,
                    stale: true
                },
                "{made_up}"
            );
        }
    }

    #[test]
    fn the_deduplicator_uses_bounded_memory() {
        let mut deduplicator = Deduplicator::default();
        for user_id in 0..=i64::try_from(REMEMBERED).unwrap() {
            deduplicator.note(&event(user_id, 1));
        }
        assert_eq!(
            (deduplicator.events.len(), deduplicator.versions.len()),
            (REMEMBERED, REMEMBERED)
        );
    }
}
