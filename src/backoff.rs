//! Pauses between attempts. A leaf: imports no other module of the crate.

use std::time::Duration;

/// Longest pause before the second attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Doubling pauses with jitter, so that replicas do not reconnect in step.
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
#[derive(Debug)]
pub(crate) struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            ceiling: FIRST_PAUSE,
        }
    }
}

impl Backoff {
    /// The next pause: at least a tenth of the ceiling, so that immediate failures do not spin.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.ceiling.mul_f64(0.1 + 0.9 * fastrand::f64());
        self.ceiling = (self.ceiling * 2).min(LONGEST_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, FIRST_PAUSE, LONGEST_PAUSE};

    #[test]
    fn pauses_grow_up_to_a_maximum_and_are_never_zero() {
        let mut backoff = Backoff::default();
        assert!(backoff.next_pause() <= FIRST_PAUSE);
        for _ in 0..20 {
            let pause = backoff.next_pause();
            assert!(
                pause >= FIRST_PAUSE / 10 && pause <= LONGEST_PAUSE,
                "{pause:?}"
            );
        }
    }
}
