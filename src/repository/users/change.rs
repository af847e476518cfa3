//! Changes to existing users, and their outcomes.

use crate::domain::event::{EventHeader, EventType};
use crate::domain::name::Name;
use crate::domain::password::PasswordHash;
use crate::domain::precondition::Precondition;
use crate::domain::user::{User, UserId, Version};

/// New values of one user's names, and the event; `None` leaves a column as it is.
#[derive(Clone)]
pub struct Update {
    pub id: UserId,
    pub name: Option<Name>,
    pub surname: Option<Name>,
    pub precondition: Precondition,
    pub event: EventHeader,
}

/// The deletion of one user, and the event.
#[derive(Clone)]
pub struct Deletion {
    pub id: UserId,
    pub precondition: Precondition,
    pub event: EventHeader,
}

/// A change of one user.
#[derive(Clone)]
pub enum Change {
    Update(Update),
    /// Always writes, because the service cannot tell whether the password differs.
    UpdateWithPassword(Update, PasswordHash),
    Deletion(Deletion),
}

impl Change {
    pub const fn id(&self) -> UserId {
        match self {
            Self::Update(update) | Self::UpdateWithPassword(update, _) => update.id,
            Self::Deletion(deletion) => deletion.id,
        }
    }

    pub(crate) const fn event(&self) -> &EventHeader {
        match self {
            Self::Update(update) | Self::UpdateWithPassword(update, _) => &update.event,
            Self::Deletion(deletion) => &deletion.event,
        }
    }

    pub(crate) const fn precondition(&self) -> &Precondition {
        match self {
            Self::Update(update) | Self::UpdateWithPassword(update, _) => &update.precondition,
            Self::Deletion(deletion) => &deletion.precondition,
        }
    }

    pub const fn event_type(&self) -> EventType {
        match self {
            Self::Update(_) | Self::UpdateWithPassword(..) => EventType::Updated,
            Self::Deletion(_) => EventType::Deleted,
        }
    }
}

/// Changes of different users that one statement can write.
pub(crate) enum Group {
    Updates(Vec<Update>),
    UpdatesWithPasswords(Vec<(Update, PasswordHash)>),
    Deletions(Vec<Deletion>),
}

impl Group {
    pub(crate) fn of(change: Change) -> Self {
        match change {
            Change::Update(update) => Self::Updates(vec![update]),
            Change::UpdateWithPassword(update, hash) => {
                Self::UpdatesWithPasswords(vec![(update, hash)])
            }
            Change::Deletion(deletion) => Self::Deletions(vec![deletion]),
        }
    }

    /// Adds a change of another user, or returns it if it is of a different variant.
    pub(crate) fn push(&mut self, change: Change) -> Option<Change> {
        match (self, change) {
            (Self::Updates(updates), Change::Update(update)) => updates.push(update),
            (Self::UpdatesWithPasswords(updates), Change::UpdateWithPassword(update, hash)) => {
                updates.push((update, hash));
            }
            (Self::Deletions(deletions), Change::Deletion(deletion)) => deletions.push(deletion),
            (_, change) => return Some(change),
        }
        None
    }

    /// Returns a copy of the change at index `place`.
    pub(crate) fn change(&self, place: usize) -> Change {
        match self {
            Self::Updates(updates) => Change::Update(updates[place].clone()),
            Self::UpdatesWithPasswords(updates) => {
                let (update, hash) = updates[place].clone();
                Change::UpdateWithPassword(update, hash)
            }
            Self::Deletions(deletions) => Change::Deletion(deletions[place].clone()),
        }
    }

    pub(super) fn ids(&self) -> Vec<UserId> {
        match self {
            Self::Updates(updates) => updates.iter().map(|update| update.id).collect(),
            Self::UpdatesWithPasswords(updates) => {
                updates.iter().map(|(update, _)| update.id).collect()
            }
            Self::Deletions(deletions) => deletions.iter().map(|deletion| deletion.id).collect(),
        }
    }
}

/// Result of a change.
#[derive(Debug)]
pub enum Outcome {
    /// The user after the change, or before the deletion.
    Changed(User),
    /// No value differed: nothing was written, and there is no event.
    Unchanged(User),
    /// The precondition does not hold for the user's version: nothing was written.
    Stale(Version),
    /// There is no such user.
    NotFound,
}

/// Result of a change in a group.
#[derive(Debug)]
pub(crate) enum GroupOutcome {
    Settled(Outcome),
    /// Nothing was written: another transaction has locked the user's row.
    Locked,
}
