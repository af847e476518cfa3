//! Splits a batch into waves: what may be unconfirmed at the same time.

use std::collections::HashMap;

use crate::domain::event::OutboxEvent;

pub type Wave<'a> = Vec<&'a OutboxEvent>;

/// Splits a batch so that a wave holds at most one event of a user: with one unconfirmed event a user, no refusal and no
/// reset can turn one user's events round. Wave n holds each user's n-th event.
pub fn waves(events: &[OutboxEvent]) -> Vec<Wave<'_>> {
    let mut waves: Vec<Wave<'_>> = Vec::new();
    let mut seen: HashMap<i64, usize> = HashMap::new();
    for event in events {
        let nth = seen.entry(event.user_id).or_default();
        if *nth == waves.len() {
            waves.push(Vec::new());
        }
        waves[*nth].push(event);
        *nth += 1;
    }
    waves
}

#[cfg(test)]
pub mod tests {
    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::waves;
    use crate::domain::{event::OutboxEvent, timestamp::Timestamp};

    /// Events of these users, numbered from 1.
    pub fn batch(users: &[i64]) -> Vec<OutboxEvent> {
        let event = |(seq, user_id)| OutboxEvent {
            seq,
            id: Uuid::now_v7(),
            event_type: "user.updated".to_owned(),
            user_id,
            version: 1,
            trace_id: "t".to_owned(),
            occurred_at: Timestamp::now(),
            data: RawValue::NULL.to_owned(),
        };
        (1..).zip(users.iter().copied()).map(event).collect()
    }

    pub fn places(waves: &[super::Wave<'_>]) -> Vec<Vec<i64>> {
        waves.iter().map(|wave| wave.iter().map(|event| event.seq).collect()).collect()
    }

    #[test]
    fn a_wave_holds_one_event_of_a_user_and_waves_keep_each_users_order() {
        assert_eq!(places(&waves(&batch(&[7, 7, 8, 7, 9, 8]))), [vec![1, 3, 5], vec![2, 6], vec![4]]);
    }

    #[test]
    fn nothing_makes_no_wave() {
        assert!(waves(&[]).is_empty());
    }
}
