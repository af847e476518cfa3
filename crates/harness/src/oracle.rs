//! Whether the events delivered are the changes committed: the same set, first deliveries of each
//! user in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::time::SystemTime;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::collector::Collected;
use super::{Observer, World};

/// User, version, event type.
pub type Change = (i64, i64, String);

/// Records every change and every event in the transaction that makes it.
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
        CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON users FOR EACH ROW EXECUTE FUNCTION audit();
        CREATE TABLE audit_events (
            event_id uuid PRIMARY KEY, user_id bigint, version bigint, event_type text, trace_id text, payload text,
            at timestamptz DEFAULT clock_timestamp()
        );
        CREATE FUNCTION audit_event() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO audit_events
            VALUES (NEW.event_id, NEW.user_id, NEW.user_version, NEW.event_type, NEW.trace_id, NEW.payload)
            ON CONFLICT DO NOTHING; -- put back from where those are that were given up
            RETURN NULL;
        END $$;
        CREATE TRIGGER audit_event AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION audit_event();";
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

/// Waits until the outbox is empty, then reads everything that was published. Checks that it is
/// exactly what was committed, with first deliveries of each user in order. Returns the number of
/// repeats.
pub async fn assert_delivered_exactly(world: &World, observer: &mut Observer) -> usize {
    world.until_outbox_is_empty().await;
    let committed = committed(world).await;
    // The last message in the queue, so everything before it has arrived.
    observer.publish_to("", "observer", b"null").await;
    let mut delivered = BTreeSet::new();
    let mut newest = BTreeMap::new();
    let mut ids = BTreeMap::new();
    let mut repeats = 0;
    loop {
        let body: Value = serde_json::from_slice(&observer.next_message().await.data).unwrap();
        if body.is_null() {
            break;
        }
        let user = body["user_id"].as_i64().unwrap();
        let version = body["version"].as_i64().unwrap();
        let change = (
            user,
            version,
            body["event_type"].as_str().unwrap().to_owned(),
        );
        assert!(
            committed.contains(&change),
            "{change:?} was delivered and never committed"
        );
        let id = ids
            .entry(change.clone())
            .or_insert_with(|| body["event_id"].clone());
        assert_eq!(
            *id, body["event_id"],
            "the event of {change:?} was repeated under another id"
        );
        if delivered.insert(change) {
            let before = newest.insert(user, version).unwrap_or(0);
            assert!(
                before < version,
                "version {version} of user {user} came after {before}"
            );
        } else {
            repeats += 1;
        }
    }
    assert_eq!(delivered, committed, "delivered, and committed");
    repeats
}

/// Everything that went wrong, and when.
#[derive(Default)]
pub struct Judgement {
    /// Committed events, by the time of their commit.
    pub committed: Vec<SystemTime>,
    /// Committed, and neither published nor logged by the service's own consumer.
    pub lost: Vec<SystemTime>,
    /// Logged by the service's own consumer, and never seen by the collector: only a deletion of
    /// the exchange, which takes the collector's binding with it, explains that.
    pub unseen: Vec<SystemTime>,
    /// Published, and never committed.
    pub phantom: Vec<SystemTime>,
    /// Published for the first time after a later change of the same user.
    pub inverted: Vec<SystemTime>,
    /// Published again.
    pub repeated: Vec<SystemTime>,
    /// Published or logged with a user, version, type, trace id or data other than the committed
    /// one.
    pub altered: Vec<SystemTime>,
    /// Changes without their event, or events without their change.
    pub unpaired: usize,
    /// Writes answered with success that were not committed.
    pub forgotten: usize,
    /// Events that the service's own consumer has not logged.
    pub unlogged: Vec<SystemTime>,
}

/// How many of each.
impl fmt::Debug for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            committed,
            lost,
            unseen,
            phantom,
            inverted,
            repeated,
            altered,
            unpaired,
            forgotten,
            unlogged,
        } = self;
        let mut counts = f.debug_struct("Judgement");
        for (name, times) in [
            ("committed", committed),
            ("lost", lost),
            ("unseen", unseen),
            ("phantom", phantom),
            ("inverted", inverted),
            ("repeated", repeated),
            ("altered", altered),
            ("unlogged", unlogged),
        ] {
            counts.field(name, &times.len());
        }
        counts
            .field("unpaired", unpaired)
            .field("forgotten", forgotten)
            .finish()
    }
}

impl Judgement {
    pub fn is_exact(&self) -> bool {
        self.lost.is_empty()
            && self.phantom.is_empty()
            && self.inverted.is_empty()
            && self.altered.is_empty()
            && self.unpaired == 0
            && self.forgotten == 0
    }
}

/// An event, as it was committed.
#[derive(sqlx::FromRow)]
struct Committed {
    event_id: Uuid,
    user_id: i64,
    version: i64,
    event_type: String,
    trace_id: String,
    payload: String,
    at: DateTime<Utc>,
}

impl Committed {
    /// Whether the message says the same.
    fn is(&self, message: &Collected) -> bool {
        (self.user_id, self.version) == (message.user_id, message.version)
            && self.event_type == message.event_type
            && self.trace_id == message.trace_id
            && self.payload == message.data
    }
}

/// Compares what was committed with what a [`super::Collector`] received, what the consumers
/// logged, and what clients were told: the numbers of the writes that were accepted.
pub async fn judge(
    world: &World,
    collected: &[Collected],
    logged: &HashMap<Uuid, String>,
    accepted: &[u64],
) -> Judgement {
    let unpaired: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT user_id, version, event_type FROM audit) AS changes
         FULL JOIN audit_events USING (user_id, version, event_type)
         WHERE changes IS NULL OR event_id IS NULL",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    let query =
        "SELECT event_id, user_id, version, event_type, trace_id, payload, at FROM audit_events";
    let events: Vec<Committed> = sqlx::query_as(query).fetch_all(&world.pool).await.unwrap();
    let traces: HashSet<&str> = events.iter().map(|event| event.trace_id.as_str()).collect();
    let forgotten = accepted
        .iter()
        .filter(|number| !traces.contains(format!("load-{number}").as_str()))
        .count();
    let mut judgement = Judgement {
        unpaired: usize::try_from(unpaired).unwrap(),
        forgotten,
        ..Judgement::default()
    };
    let known: HashMap<Uuid, &Committed> =
        events.iter().map(|event| (event.event_id, event)).collect();
    let mut seen = HashSet::new();
    let mut newest = HashMap::new();
    for message in collected {
        let Some(event) = known.get(&message.event_id) else {
            judgement.phantom.push(message.at);
            continue;
        };
        if !event.is(message) {
            judgement.altered.push(message.at);
        }
        if seen.insert(message.event_id) {
            let before = newest.insert(message.user_id, message.version).unwrap_or(0);
            if before >= message.version {
                judgement.inverted.push(message.at);
            }
        } else if !message.redelivered {
            judgement.repeated.push(message.at);
        }
    }
    for Committed {
        event_id,
        trace_id,
        at,
        ..
    } in &events
    {
        let at = *at;
        judgement.committed.push(at.into());
        let logged = logged.get(event_id);
        if logged.is_some_and(|logged| logged != trace_id) {
            judgement.altered.push(at.into());
        }
        match (seen.contains(event_id), logged.is_some()) {
            (true, true) => {}
            (true, false) => judgement.unlogged.push(at.into()),
            (false, true) => judgement.unseen.push(at.into()),
            (false, false) => {
                judgement.unlogged.push(at.into());
                judgement.lost.push(at.into());
            }
        }
    }
    judgement
}
