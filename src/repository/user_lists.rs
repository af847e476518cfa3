//! Pages of the list of users. Requests for the same page that wait while it is read are answered by one query together.
//!
//! Of each page one query runs at a time, on the pool. A request joins only a query that has not been sent yet, so that it
//! sees whatever was committed before it began. It hears of an error that its query met, and of no other.

use std::{
    collections::{HashMap, hash_map::Entry},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt;
use tokio::{sync::oneshot, time::timeout};

use super::{
    database::{Database, DatabaseError, OPERATION_TIMEOUT},
    users,
};
use crate::domain::{page::Page, user::UserPage};

type Answer = Result<Arc<UserPage>, DatabaseError>;
type Callers = Vec<oneshot::Sender<Answer>>;

/// Cheap to clone.
#[derive(Clone)]
pub struct UserLists {
    database: Database,
    /// The pages that are being read, and who waits for the next query of each.
    waiting: Arc<Mutex<HashMap<Page, Callers>>>,
}

impl UserLists {
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database, waiting: Arc::default() }
    }

    /// # Errors
    /// As [`Database::read`].
    pub async fn get(&self, page: Page) -> Answer {
        let (answer, answered) = oneshot::channel();
        match self.waiting().entry(page) {
            Entry::Occupied(mut callers) => callers.get_mut().push(answer),
            Entry::Vacant(none) => {
                none.insert(vec![answer]);
                tokio::spawn(self.clone().read_while_wanted(page));
            }
        }
        timeout(OPERATION_TIMEOUT, answered).await.ok().and_then(Result::ok).unwrap_or(Err(DatabaseError::Timeout))
    }

    /// Without company.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub async fn get_alone(&self, page: Page) -> Answer {
        self.database.read(|connection| Box::pin(users::list(connection, page))).await.map(Arc::new)
    }

    async fn read_while_wanted(self, page: Page) {
        while let Some(callers) = self.take_callers(page) {
            let caught = AssertUnwindSafe(self.get_alone(page)).catch_unwind().await;
            let answer = caught.unwrap_or_else(|panic| Err(DatabaseError::of_panic(panic.as_ref())));
            for caller in callers {
                // It may have gone away.
                _ = caller.send(answer.clone());
            }
        }
    }

    /// Whoever waits for the page. If nobody does, it is not being read any more.
    fn take_callers(&self, page: Page) -> Option<Callers> {
        let mut waiting = self.waiting();
        let callers = waiting.get_mut(&page)?;
        callers.retain(|caller| !caller.is_closed());
        if callers.is_empty() {
            waiting.remove(&page);
            return None;
        }
        Some(std::mem::take(callers))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Page, Callers>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
