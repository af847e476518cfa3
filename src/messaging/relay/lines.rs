//! The leader's connections to the broker, one for each lane. One can be opened or renewed while
//! the others publish.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};

use super::publisher::Publisher;
use crate::domain::event::EventType;
use crate::messaging::broker::Broker;
use crate::messaging::schedule::lane::{LANES, OTHERS};
use crate::messaging::session::SessionError;
use crate::monitoring::state::Link;

/// Time limit for opening or renewing one; its steps have their own limits.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Time limit for reopening a lost one. Noticing a silent network takes up to nine seconds, and
/// after twelve another replica should lead.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(2);

type Opened = (usize, Result<Publisher, SessionError>);

pub(crate) struct Lines {
    /// `None` while it is being opened.
    open: [Option<Publisher>; LANES],
    opening: FuturesUnordered<BoxFuture<'static, Opened>>,
    /// When the broker last blocked each one; at first, when they were created.
    pub blocked_at: [Instant; LANES],
}

impl Lines {
    /// Takes the open one for the lane of other types, and starts to open the rest.
    pub(crate) fn new(first: Publisher, broker: &Broker, now: Instant) -> Self {
        let mut lines = Self {
            open: Default::default(),
            opening: FuturesUnordered::new(),
            blocked_at: [now; LANES],
        };
        for (lane, event_type) in EventType::ALL.into_iter().enumerate() {
            lines.begin(
                lane,
                TIMEOUT,
                Publisher::open(broker.clone(), format!("relay {}", event_type.as_str())),
            );
        }
        lines.open[OTHERS] = Some(first);
        lines
    }

    fn begin(
        &mut self,
        lane: usize,
        limit: Duration,
        opening: impl Future<Output = Result<Publisher, SessionError>> + Send + 'static,
    ) {
        self.opening.push(Box::pin(async move {
            let opened = timeout(limit, opening).await;
            (
                lane,
                opened.unwrap_or(Err(SessionError::Timeout("connect to RabbitMQ"))),
            )
        }));
    }

    /// Starts to reopen lost ones. Returns the state of all: blocked if one of them is.
    pub(crate) fn watch(&mut self, now: Instant) -> Link {
        for lane in 0..LANES {
            match self.open[lane].as_ref().map(Publisher::link) {
                Some(Link::Down) => self.renew(lane),
                Some(Link::Blocked) => self.blocked_at[lane] = now,
                Some(Link::Up) | None => {}
            }
        }
        let links = || self.open.iter().flatten().map(Publisher::link);
        if links().any(|link| link == Link::Blocked) {
            Link::Blocked
        } else {
            links().next().unwrap_or_default()
        }
    }

    /// The lanes that can publish now.
    pub(crate) fn usable(&self) -> [bool; LANES] {
        self.open
            .each_ref()
            .map(|publisher| publisher.as_ref().is_some_and(|it| it.link() == Link::Up))
    }

    /// `None` while it is being opened.
    pub(crate) fn publisher(&self, lane: usize) -> Option<&Publisher> {
        self.open[lane].as_ref()
    }

    /// Starts to open a new channel, and a new connection if needed. Does nothing while one is
    /// being opened.
    pub(crate) fn renew(&mut self, lane: usize) {
        if let Some(publisher) = self.open[lane].take() {
            let limit = if publisher.link() == Link::Down {
                REOPEN_TIMEOUT
            } else {
                TIMEOUT
            };
            self.begin(lane, limit, publisher.renew());
        }
    }

    pub(crate) fn is_opening(&self) -> bool {
        !self.opening.is_empty()
    }

    /// Waits until one is open and returns its lane; `None` if none is being opened. Cancel safe.
    ///
    /// # Errors
    /// If one cannot be opened: a replica that cannot connect should not lead.
    pub(crate) async fn opened(&mut self) -> Option<Result<usize, SessionError>> {
        let (lane, opened) = self.opening.next().await?;
        Some(opened.map(|publisher| {
            self.open[lane] = Some(publisher);
            lane
        }))
    }

    pub(crate) async fn close(self) {
        join_all(self.open.into_iter().flatten().map(Publisher::close)).await;
    }
}
