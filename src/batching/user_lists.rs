//! Pages of the list of users. Waiting requests for the same page share one query.
//!
//! At most one query per page and a few in total run at a time, on the pool. A request joins only a
//! query that has not been sent yet, so it sees everything committed before the request began, and
//! only its own query's error.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::request::{ReplyTo, request};
use crate::database::{Database, DatabaseError, TimeLimits};
use crate::domain::page::Page;
use crate::domain::user::{User, UserPage};
use crate::repository::users;

/// At most one in this many of the pool's connections reads lists at a time.
const SHARE: usize = 4;

/// A page that several requests may share, and the response body once one of them has rendered it.
pub struct SharedPage {
    pub page: UserPage,
    body: OnceLock<Bytes>,
}

impl From<UserPage> for SharedPage {
    fn from(page: UserPage) -> Self {
        let body = OnceLock::new();
        Self { page, body }
    }
}

impl SharedPage {
    /// The result of `render`, which runs once for all requests.
    pub fn body(&self, render: impl FnOnce(&[User]) -> Bytes) -> Bytes {
        self.body.get_or_init(|| render(&self.page.users)).clone()
    }
}

type Answer = Result<Arc<SharedPage>, DatabaseError>;
type Callers = Vec<ReplyTo<Arc<SharedPage>>>;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct UserLists {
    database: Database,
    /// The pages being read, and who waits for the next query of each.
    waiting: Arc<Mutex<HashMap<Page, Callers>>>,
    /// Limits the running queries: a page far from the start takes long, and other requests need
    /// the pool's connections too.
    slots: Arc<Semaphore>,
}

impl UserLists {
    pub(crate) fn new(database: Database) -> Self {
        let slots = Arc::new(Semaphore::new(database.max_connections().div_ceil(SHARE)));
        Self {
            database,
            waiting: Arc::default(),
            slots,
        }
    }

    pub(crate) async fn get(&self, page: Page) -> Answer {
        request(|caller| {
            match self.waiting.lock().entry(page) {
                Entry::Occupied(mut callers) => callers.get_mut().push(caller),
                Entry::Vacant(none) => {
                    none.insert(vec![caller]);
                    tokio::spawn(self.clone().read_while_wanted(page));
                }
            }
            Ok(())
        })
        .await
    }

    /// Reads a page with a query of its own.
    pub(crate) async fn get_alone(&self, page: Page) -> Answer {
        let slot = timeout(TimeLimits::REQUESTS.operation, self.slots.acquire()).await;
        let _slot = slot
            .map_err(|_elapsed| DatabaseError::Overloaded)?
            .map_err(|_closed| DatabaseError::Overloaded)?;
        self.read(page).await
    }

    async fn read(&self, page: Page) -> Answer {
        self.database
            .read(|connection| Box::pin(users::list(connection, page)))
            .await
            .map(|page| Arc::new(SharedPage::from(page)))
    }

    async fn read_while_wanted(self, page: Page) {
        loop {
            // Wait for the slot before taking the callers: callers who leave meanwhile cost no
            // query.
            let slot = self.slots.clone().acquire_owned().await;
            let Some(callers) = self.take_callers(page) else {
                return;
            };
            let answer = self.read(page).await;
            drop(slot);
            for caller in callers {
                caller.send(answer.clone());
            }
        }
    }

    /// Takes all callers that wait for the page. If there are none, reading it ends.
    fn take_callers(&self, page: Page) -> Option<Callers> {
        let mut waiting = self.waiting.lock();
        let callers = waiting.get_mut(&page)?;
        callers.retain(|caller| !caller.has_gone());
        if callers.is_empty() {
            waiting.remove(&page);
            return None;
        }
        Some(std::mem::take(callers))
    }
}
