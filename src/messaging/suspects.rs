//! Finds the event that makes the broker close the channel, among those that were on their way when it did: each is
//! published alone, and the one that closes the channel again and again, while others pass, is to blame.

use std::collections::{HashMap, HashSet};

use super::waves::Wave;
use crate::domain::event::OutboxEvent;

/// Times that an event must close the channel, alone on it, before it is given up.
const STRIKES: u32 = 3;

/// Outlives a session: a closed channel ends it.
#[derive(Debug, Default)]
pub struct Suspects {
    /// On their way when the channel was closed; each goes alone until it is confirmed.
    alone: HashSet<i64>,
    struck: HashMap<i64, Record>,
}

#[derive(Debug, Default)]
struct Record {
    user_id: i64,
    strikes: u32,
    /// The broker takes other events, so it is not the broker that is at fault.
    others_passed: bool,
}

impl Suspects {
    /// The same waves, with suspects alone, and last the users of those that closed the channel already, so that they
    /// hold nobody up.
    pub fn arrange<'a>(&self, waves: Vec<Wave<'a>>) -> Vec<Wave<'a>> {
        if self.alone.is_empty() {
            return waves;
        }
        let users: HashSet<i64> = self.struck.values().map(|record| record.user_id).collect();
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for wave in waves {
            let (struck, clear): (Wave<'_>, Wave<'_>) =
                wave.into_iter().partition(|event| users.contains(&event.user_id));
            first.extend(self.separate(clear));
            last.extend(self.separate(struck));
        }
        first.append(&mut last);
        first
    }

    fn separate<'a>(&self, wave: Wave<'a>) -> impl Iterator<Item = Wave<'a>> {
        let (alone, together): (Wave<'a>, Wave<'a>) =
            wave.into_iter().partition(|event| self.alone.contains(&event.seq));
        let together = Some(together).filter(|wave| !wave.is_empty());
        together.into_iter().chain(alone.into_iter().map(|event| vec![event]))
    }

    /// The broker closed the channel while `wave` was on its way. The event that is to blame, once that is certain.
    pub fn channel_closed<'a>(&mut self, wave: &Wave<'a>) -> Option<&'a OutboxEvent> {
        self.alone.extend(wave.iter().map(|event| event.seq));
        let [event] = wave[..] else { return None };
        let record = self.struck.entry(event.seq).or_default();
        record.user_id = event.user_id;
        record.strikes += 1;
        (record.strikes >= STRIKES && record.others_passed).then_some(event)
    }

    /// The broker confirmed these.
    pub fn passed(&mut self, confirmed: &Wave<'_>) {
        if self.alone.is_empty() || confirmed.is_empty() {
            return;
        }
        for event in confirmed {
            self.forget(event);
        }
        for record in self.struck.values_mut() {
            record.others_passed = true;
        }
    }

    /// It is out of the outbox.
    pub fn forget(&mut self, event: &OutboxEvent) {
        self.alone.remove(&event.seq);
        self.struck.remove(&event.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::{STRIKES, Suspects};
    use crate::messaging::waves::{
        tests::{batch, places},
        waves,
    };

    #[test]
    fn without_suspects_waves_stay_as_they_are() {
        let events = batch(&[1, 2, 1]);
        assert_eq!(places(&Suspects::default().arrange(waves(&events))), [vec![1, 2], vec![3]]);
    }

    #[test]
    fn after_a_closed_channel_those_that_were_on_their_way_go_one_by_one() {
        let (events, mut suspects) = (batch(&[1, 2, 3, 1]), Suspects::default());
        assert!(suspects.channel_closed(&vec![&events[0], &events[1]]).is_none());
        assert_eq!(places(&suspects.arrange(waves(&events))), [vec![3], vec![1], vec![2], vec![4]]);
        suspects.passed(&vec![&events[0], &events[1]]);
        assert_eq!(places(&suspects.arrange(waves(&events))), [vec![1, 2, 3], vec![4]]);
    }

    #[test]
    fn a_struck_users_events_come_last_and_in_order() {
        let (events, mut suspects) = (batch(&[1, 1, 2, 2]), Suspects::default());
        suspects.channel_closed(&vec![&events[0]]);
        assert_eq!(places(&suspects.arrange(waves(&events))), [vec![3], vec![4], vec![1], vec![2]]);
    }

    #[test]
    fn an_event_is_to_blame_after_three_strikes_and_only_if_others_pass() {
        let (events, mut suspects) = (batch(&[1, 2]), Suspects::default());
        let poison = vec![&events[0]];
        for _ in 0..STRIKES * 2 {
            assert!(suspects.channel_closed(&poison).is_none(), "perhaps the broker takes nothing at all");
        }
        suspects.passed(&vec![&events[1]]);
        assert_eq!(suspects.channel_closed(&poison).map(|event| event.seq), Some(events[0].seq));
    }

    #[test]
    fn strikes_are_forgotten_once_an_event_passes() {
        let (events, mut suspects) = (batch(&[1, 2]), Suspects::default());
        let event = vec![&events[0]];
        for _ in 0..STRIKES {
            suspects.passed(&vec![&events[1]]);
            assert!(suspects.channel_closed(&event).is_none());
            suspects.passed(&event);
        }
    }
}
