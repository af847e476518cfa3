//! Whether the events delivered are the changes committed: the same set, each user's first sights in order.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Observer, World};

/// User, version, event type.
pub type Change = (i64, i64, String);

/// Writes down every committed change, in the transaction that makes it.
pub async fn audit(world: &World) {
    let schema = "
        CREATE TABLE audit (user_id bigint, version bigint, event_type text);
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO audit VALUES (
                coalesce(NEW.id, OLD.id),
                coalesce(NEW.version, OLD.version + 1),
                CASE TG_OP WHEN 'INSERT' THEN 'user.created' WHEN 'UPDATE' THEN 'user.updated' ELSE 'user.deleted' END
            );
            RETURN NULL;
        END $$;
        CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION audit();";
    sqlx::raw_sql(schema).execute(&world.pool).await.unwrap();
}

pub async fn committed(world: &World) -> BTreeSet<Change> {
    sqlx::query_as("SELECT user_id, version, event_type FROM audit")
        .fetch_all(&world.pool)
        .await
        .unwrap()
        .into_iter()
        .collect()
}

/// Reads until every committed change has its event; checks that nothing else came, and each user's first sights in order.
pub async fn assert_delivered_exactly(observer: &mut Observer, committed: &BTreeSet<Change>) -> usize {
    let (mut delivered, mut newest, mut ids) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    let mut repeats = 0;
    while delivered != *committed {
        let body: Value = serde_json::from_slice(&observer.next().await.data).unwrap();
        let (user, version) = (body["user_id"].as_i64().unwrap(), body["version"].as_i64().unwrap());
        let change = (user, version, body["event_type"].as_str().unwrap().to_owned());
        assert!(committed.contains(&change), "{change:?} was delivered and never committed");
        let id = ids.entry(change.clone()).or_insert_with(|| body["event_id"].clone());
        assert_eq!(*id, body["event_id"], "the event of {change:?} was repeated under another id");
        if delivered.insert(change) {
            let before = newest.insert(user, version).unwrap_or(0);
            assert!(before < version, "version {version} of user {user} came after {before}");
        } else {
            repeats += 1;
        }
    }
    repeats
}
