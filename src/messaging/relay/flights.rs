//! Events in flight to the broker, and its answers.

use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::{Confirmation, ConnectionStatus};
use metrics::{counter, histogram};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::flow::Track;
use super::publisher::Publisher;
use super::schedule::{Flight, Outcome};
use crate::error_chain::Chain;
use crate::messaging::message;
use crate::messaging::session::SessionError;

/// A trial without an answer is given up after this time, and repeated. Queues other than the silent one then get the event again.
const TRIAL_TIMEOUT: Duration = Duration::from_mins(1);

type Confirmed = (Flight, Instant, Result<Confirmation, SessionError>);

#[derive(Default)]
pub struct Flights {
    on_the_way: FuturesUnordered<BoxFuture<'static, Confirmed>>,
    /// Ids of events that the broker returned and whose confirm has not come yet.
    returned: HashSet<Uuid>,
}

pub struct Landing {
    pub flight: Flight,
    pub outcome: Outcome,
    /// What the broker said, if it did not confirm.
    pub reason: String,
}

impl Flights {
    pub fn begin(&mut self, publisher: &Publisher, flight: Flight) {
        let (publishing, status, began) = (publisher.publish(&flight), publisher.status(), Instant::now());
        self.on_the_way.push(Box::pin(async move {
            let confirmation = match flight.track {
                // The leader watches these: it ends the session if none lands.
                Track::Main => publishing.await,
                Track::Trial => confirmed_in_time(publishing, &status).await,
            };
            (flight, began, confirmation)
        }));
    }

    pub fn is_empty(&self) -> bool {
        self.on_the_way.is_empty()
    }

    /// Waits for one to land, and takes all that have. Cancel safe.
    pub async fn landed(&mut self) -> Vec<Landing> {
        let confirmed = poll_fn(|context| {
            let mut confirmed = Vec::new();
            while let Poll::Ready(Some(one)) = self.on_the_way.poll_next_unpin(context) {
                confirmed.push(one);
            }
            if confirmed.is_empty() { Poll::Pending } else { Poll::Ready(confirmed) }
        })
        .await;
        histogram!("events_confirm_seconds").record(confirmed[0].1.elapsed());
        self.judge(confirmed)
    }

    /// lapin attaches a returned message to the next confirm, whichever event that belongs to; only the id tells. So an event was
    /// returned if its id was returned by now, or if its confirm carries another event's return.
    fn judge(&mut self, confirmed: Vec<Confirmed>) -> Vec<Landing> {
        let mut landings: Vec<Landing> = confirmed
            .into_iter()
            .map(|(flight, _, confirmation)| {
                let (outcome, reason) = self.outcome(confirmation);
                Landing { flight, outcome, reason }
            })
            .collect();
        for landing in &mut landings {
            if self.returned.remove(&landing.flight.event.id) && landing.outcome == Outcome::Confirmed {
                (landing.outcome, landing.reason) = (Outcome::Refused, "returned".to_owned());
            }
        }
        landings
    }

    fn outcome(&mut self, confirmation: Result<Confirmation, SessionError>) -> (Outcome, String) {
        let confirmation = match confirmation {
            Ok(confirmation) => confirmation,
            Err(error) if error.is_missing_exchange() || matches!(error, SessionError::Timeout(_)) => {
                return (Outcome::Refused, Chain(&error).to_string());
            }
            Err(error) => return (Outcome::ChannelClosed(error.reply_code()), Chain(&error).to_string()),
        };
        let is_ack = confirmation.is_ack();
        if let Some(returned) = confirmation.take_message() {
            counter!("events_returned_total").increment(1);
            self.returned.extend(message::id(&returned.delivery.properties));
            (Outcome::Refused, returned.reply_text.to_string())
        } else if is_ack {
            (Outcome::Confirmed, String::new())
        } else {
            counter!("events_nacked_total").increment(1);
            (Outcome::Refused, "nacked".to_owned())
        }
    }
}

/// The limit starts over if the broker blocks us when it ends.
async fn confirmed_in_time(
    publishing: impl Future<Output = Result<Confirmation, SessionError>>,
    status: &ConnectionStatus,
) -> Result<Confirmation, SessionError> {
    let mut publishing = pin!(publishing);
    loop {
        match timeout(TRIAL_TIMEOUT, &mut publishing).await {
            Ok(confirmation) => return confirmation,
            Err(_elapsed) if status.blocked() => {}
            Err(_elapsed) => return Err(SessionError::Timeout("confirm an event")),
        }
    }
}
