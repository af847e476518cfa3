//! Fair queueing of hashes. Each caller has a queue of its own, and free slots go to the callers in
//! turn, so that a caller with many requests delays only itself.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::actor::Client;

/// Most waiting hashes of one caller.
const MAX_OF_CALLER: usize = 256;
/// Most waiting hashes in total.
const MAX_WAITING: usize = 1_024;

/// Hands out hashing slots in turn; cheap to clone.
#[derive(Clone)]
pub(crate) struct Turns(Arc<Mutex<State>>);

struct State {
    free: usize,
    /// Waiting hashes by caller; no queue is empty.
    queues: HashMap<Client, VecDeque<oneshot::Sender<Turn>>>,
    /// Callers with waiting hashes, the next one first.
    callers: VecDeque<Client>,
    waiting: usize,
}

/// A slot; passes to the next waiting hash when dropped.
pub(crate) struct Turn(Option<Turns>);

impl Turns {
    pub(crate) fn new(slots: usize) -> Self {
        let state = State {
            free: slots,
            queues: HashMap::new(),
            callers: VecDeque::new(),
            waiting: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn free(&self) -> usize {
        self.0.lock().free
    }

    /// Waits for a slot; returns `None` immediately if too many wait, and later if it is evicted
    /// for another caller. A wait that was dropped is skipped.
    pub(crate) async fn wait(&self, caller: Client) -> Option<Turn> {
        let turn = {
            let mut state = self.0.lock();
            if state.free > 0 {
                state.free -= 1;
                return Some(Turn(Some(self.clone())));
            }
            state.enqueue(caller)?
        };
        turn.await.ok()
    }

    /// Hands a slot on.
    fn pass_on(self) {
        loop {
            let mut state = self.0.lock();
            let Some(next) = state.next() else {
                state.free += 1;
                return;
            };
            drop(state);
            match next.send(Turn(Some(self.clone()))) {
                Ok(()) => return,
                // The waiter has gone. Dropping its turn must not pass the slot on as well.
                Err(mut unused) => _ = unused.0.take(),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

impl State {
    fn enqueue(&mut self, caller: Client) -> Option<oneshot::Receiver<Turn>> {
        let waits = |queue: &VecDeque<_>| queue.len();
        if self.waiting >= MAX_WAITING || self.queues.get(&caller).map_or(0, waits) >= MAX_OF_CALLER
        {
            self.drop_abandoned();
        }
        let of_caller = self.queues.get(&caller).map_or(0, waits);
        if of_caller >= MAX_OF_CALLER
            || (self.waiting >= MAX_WAITING && !self.make_room(of_caller + 1))
        {
            return None;
        }
        let (give, turn) = oneshot::channel();
        let queue = self.queues.entry(caller.clone()).or_default();
        if queue.is_empty() {
            self.callers.push_back(caller);
        }
        queue.push_back(give);
        self.waiting += 1;
        Some(turn)
    }

    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let caller = self.callers.pop_front()?;
        let queue = self.queues.get_mut(&caller)?;
        let next = queue.pop_front()?;
        self.waiting -= 1;
        if queue.is_empty() {
            self.queues.remove(&caller);
        } else {
            self.callers.push_back(caller);
        }
        Some(next)
    }

    /// Evicts the last hash of the longest queue, if that is longer than `length`, so that a few
    /// callers with many waiting hashes do not keep the others out.
    fn make_room(&mut self, length: usize) -> bool {
        let longest = self.queues.values_mut().max_by_key(|queue| queue.len());
        let is_longer = longest
            .filter(|queue| queue.len() > length)
            .and_then(VecDeque::pop_back)
            .is_some();
        self.waiting -= usize::from(is_longer);
        is_longer
    }

    fn drop_abandoned(&mut self) {
        self.queues.retain(|_, queue| {
            queue.retain(|waiting| !waiting.is_closed());
            !queue.is_empty()
        });
        self.callers
            .retain(|caller| self.queues.contains_key(caller));
        self.waiting = self.queues.values().map(VecDeque::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    use super::{Client, MAX_OF_CALLER, Turn, Turns};

    fn caller(number: u8) -> Client {
        Client::Address(Some(Ipv4Addr::new(192, 0, 2, number).into()))
    }

    /// A waiting hash; polled once, so that it is in its queue.
    fn waiting(turns: &Turns, number: u8) -> BoxFuture<'static, Option<Turn>> {
        let turns = turns.clone();
        let mut wait = async move { turns.wait(caller(number)).await }.boxed();
        assert!(
            (&mut wait).now_or_never().is_none(),
            "{number} has a turn already"
        );
        wait
    }

    #[test]
    fn callers_alternate_regardless_of_who_waits_longer() {
        let turns = Turns::new(1);
        let first = turns.wait(caller(1)).now_or_never().flatten().unwrap();
        let [greedy, more] = [1, 1].map(|number| waiting(&turns, number));
        let modest = waiting(&turns, 2);
        drop(first);
        let turn = greedy.now_or_never().flatten().unwrap();
        drop(turn);
        let turn = modest
            .now_or_never()
            .flatten()
            .expect("the other caller's turn");
        drop(turn);
        drop(more.now_or_never().flatten().unwrap());
        assert_eq!(turns.free(), 1);
    }

    #[test]
    fn a_caller_that_left_is_skipped_and_no_slot_is_lost() {
        let turns = Turns::new(1);
        let first = turns.wait(caller(1)).now_or_never().flatten().unwrap();
        let gone = waiting(&turns, 1);
        let stays = waiting(&turns, 1);
        let given = waiting(&turns, 1);
        drop(gone);
        drop(first);
        drop(
            stays
                .now_or_never()
                .flatten()
                .expect("the turn of the one who has gone"),
        );
        // It was given a turn, and never took it.
        drop(given);
        assert_eq!(turns.free(), 1);
    }

    #[test]
    fn a_new_caller_displaces_one_from_the_longest_queue_when_full() {
        let turns = Turns::new(1);
        let _first = turns.wait(caller(0)).now_or_never().flatten().unwrap();
        let mut all: Vec<_> = (1..=4)
            .flat_map(|number| vec![number; MAX_OF_CALLER])
            .map(|it| waiting(&turns, it))
            .collect();
        let _modest = waiting(&turns, 5);
        let refused = all
            .iter_mut()
            .filter_map(FutureExt::now_or_never)
            .collect::<Vec<_>>();
        assert!(refused.len() == 1 && refused[0].is_none());
    }

    #[test]
    fn only_the_caller_with_too_many_waiting_is_refused_immediately() {
        let turns = Turns::new(1);
        let _first = turns.wait(caller(1)).now_or_never().flatten().unwrap();
        let mut all: Vec<_> = (0..MAX_OF_CALLER).map(|_| waiting(&turns, 1)).collect();
        assert!(
            turns
                .wait(caller(1))
                .now_or_never()
                .expect("an answer at once")
                .is_none()
        );
        drop(waiting(&turns, 2));
        all.pop();
        drop(waiting(&turns, 1));
    }
}
