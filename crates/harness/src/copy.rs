//! A subscriber as the guide describes it.

use std::collections::HashMap;

use serde_json::{Value, json};

/// A subscriber's copy of the users, kept by the rules of `docs/subscribers.md`.
#[derive(Default)]
pub struct Copy {
    users: HashMap<i64, Value>,
    versions: HashMap<i64, i64>,
}

impl Copy {
    pub fn apply(&mut self, event: &Value) {
        let user = event["user_id"].as_i64().unwrap();
        let version = event["version"].as_i64().unwrap();
        if version <= self.versions.get(&user).copied().unwrap_or(0) {
            return;
        }
        self.versions.insert(user, version);
        if event["event_type"] == "user.deleted" {
            self.users.remove(&user);
        } else {
            self.users.insert(user, event["data"].clone());
        }
    }

    /// Forgets those that the list does not have.
    pub fn compare(&mut self, list: &Value) {
        self.users.retain(|id, _| {
            list.as_array()
                .unwrap()
                .iter()
                .any(|user| user["id"] == *id)
        });
    }

    #[track_caller]
    pub fn assert_is(&self, list: &Value) {
        let listed: HashMap<_, _> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|user| {
                (
                    user["id"].as_i64().unwrap(),
                    json!({"name": user["name"], "surname": user["surname"]}),
                )
            })
            .collect();
        assert_eq!(self.users, listed);
    }
}
