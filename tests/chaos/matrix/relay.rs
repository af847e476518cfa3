//! Conditions that may delay the relay while all servers run: a queue that refuses a type, a
//! forbidden type, an old snapshot, a late commit; and a leader lost during a drain.

use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, interval, sleep};
use uuid::Uuid;

use super::database::insert_events;
use crate::chaos::trial::Trial;
use harness::{Observer, Proxy, World, command, management, until};

/// The lag of the events that meet a condition.
#[derive(Debug)]
struct Lag {
    /// From commit to collector.
    longest: Duration,
    /// The 99th percentile.
    p99: Duration,
    repeated: usize,
}

async fn lag(trial: &Trial, since: SystemTime, condition: &str) -> Lag {
    let query = format!("SELECT event_id, at FROM audit_events WHERE at > $1 AND {condition}");
    let committed: Vec<(Uuid, chrono::DateTime<chrono::Utc>)> =
        sqlx::query_as(sqlx::AssertSqlSafe(query))
            .bind(chrono::DateTime::<chrono::Utc>::from(since))
            .fetch_all(&trial.world.pool)
            .await
            .unwrap();
    let mut seen = std::collections::HashMap::<Uuid, (SystemTime, usize)>::new();
    for message in trial.collector.messages.lock().unwrap().iter() {
        seen.entry(message.event_id).or_insert((message.at, 0)).1 += 1;
    }
    let seen: Vec<_> = committed
        .iter()
        .filter_map(|(id, at)| Some((*at, seen.get(id)?)))
        .collect();
    assert!(
        seen.len() > 50 && seen.len() + 1_000 > committed.len(),
        "{} of {}",
        seen.len(),
        committed.len()
    );
    let mut lags: Vec<Duration> = seen
        .iter()
        .map(|(at, (came, _))| came.duration_since((*at).into()).unwrap_or_default())
        .collect();
    lags.sort_unstable();
    Lag {
        longest: lags[lags.len() - 1],
        p99: lags[lags.len() * 99 / 100],
        repeated: seen.iter().filter(|(_, (_, times))| *times > 1).count(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_refused_for_a_minute_delay_others_under_a_second() {
    let trial = Trial::start(1).await;
    let stranger = Observer::new(&trial.world).await;
    let policy = stranger.refuse_deletions(&trial.world).await;
    let load = trial.load(1_000);
    let since = SystemTime::now();
    sleep(Duration::from_mins(1)).await;
    let others = lag(&trial, since, "event_type <> 'user.deleted'").await;
    let pending = trial.pending().await;
    eprintln!("  {pending} events wait; the others: {others:?}");
    assert!(pending > 100, "{pending} deletions wait");
    assert!(others.longest < Duration::from_secs(1), "{others:?}");
    assert_eq!(others.repeated, 0, "healthy events are not repeated");
    management(Method::DELETE, &policy).await;
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_forbidden_for_20_s_are_quarantined_until_retried() {
    let trial = Trial::start(1).await;
    let load = trial.load(500);
    let permissions = trial.world.forbid_deletions().await;
    let since = SystemTime::now();
    sleep(Duration::from_secs(20)).await;
    let others = lag(&trial, since, "event_type <> 'user.deleted'").await;
    let dead: i64 = trial
        .world
        .value("SELECT count(*) FROM outbox_quarantine")
        .await;
    eprintln!("  {dead} deletions in quarantine; the others: {others:?}");
    assert!(
        dead > 50 && others.longest < Duration::from_secs(1),
        "{dead}, {others:?}"
    );
    management(Method::DELETE, &permissions).await;
    until("all of them again", async || {
        let retry = command(&trial.world.settings())
            .args(["outbox", "quarantine", "retry", "--all"])
            .output()
            .await
            .unwrap();
        assert!(retry.status.success(), "{retry:?}");
        let left: i64 = trial
            .world
            .value("SELECT count(*) FROM outbox_quarantine")
            .await;
        left == 0 && trial.pending().await < 50
    })
    .await;
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_never_answers_deletions_delays_no_other_event() {
    let trial = Trial::start(1).await;
    Observer::new(&trial.world).await.bind_deletions().await;
    let load = trial.load(500);
    until("events", async || trial.collector.count() > 500).await;
    // A quorum queue that has lost its majority behaves like this.
    let tell = async |what: &str| {
        let queue = format!(
            "rabbit_misc:r(<<\"{}\">>, queue, <<\"deletions\">>)",
            trial.world.virtual_host
        );
        let program = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup({queue}), ok = sys:{what}(amqqueue:get_pid(Q))."
        );
        trial.control.rabbitmqctl(&["eval", &program]).await;
    };
    tell("suspend").await;
    let since = SystemTime::now();
    sleep(Duration::from_secs(35)).await;
    let others = lag(&trial, since, "event_type <> 'user.deleted'").await;
    let pending = trial.pending().await;
    eprintln!("  {pending} events wait; the others: {others:?}");
    assert!(pending > 50 && others.longest < Duration::from_secs(1) && others.repeated == 0);
    tell("resume").await;
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_confirming_100_of_1000_updates_per_s_delays_no_other() {
    let trial = Trial::start(1).await;
    let stranger = Observer::new(&trial.world).await;
    stranger.bind("updates", "user.updated", "quorum").await;
    let load = trial.load(1_000);
    until("events", async || trial.collector.count() > 500).await;
    // Its process gets a moment ten times a second.
    let slow_down = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"{}\">>, queue, <<\"updates\">>)),
         {{Name, _}} = amqqueue:get_pid(Q),
         register(slow, spawn(fun() -> P = whereis(Name), (fun Again() ->
             erlang:suspend_process(P), timer:sleep(100), erlang:resume_process(P), erlang:yield(), Again()
         end)() end)).",
        trial.world.virtual_host
    );
    trial.control.rabbitmqctl(&["eval", &slow_down]).await;
    let since = SystemTime::now();
    let waiting = async || {
        trial
            .world
            .value::<i64>("SELECT count(*) FROM outbox")
            .await
    };
    sleep(Duration::from_secs(10)).await;
    let before = waiting().await;
    let published = stranger.waiting("updates").await;
    sleep(Duration::from_secs(30)).await;
    let after = waiting().await;
    let rate = (stranger.waiting("updates").await - published) / 30;
    // A user's next event waits for its previous one.
    let others = "event_type <> 'user.updated' AND NOT EXISTS (
        SELECT FROM audit_events AS earlier
        WHERE earlier.user_id = audit_events.user_id AND earlier.version < audit_events.version AND earlier.at > $1
    )";
    let others = lag(&trial, since, others).await;
    eprintln!(
        "  it takes {rate} updates a second; {before} and later {after} events wait; the others: \
         {others:?}"
    );
    assert!(
        after > before && after > 1_000,
        "the queue is not slow: {before}, {after}"
    );
    assert!(
        others.p99 < Duration::from_secs(1) && others.repeated == 0,
        "{others:?}"
    );
    trial
        .control
        .rabbitmqctl(&["eval", "exit(whereis(slow), kill)."])
        .await;
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_twenty_thousand_events_delays_no_other_user() {
    let mut trial = Trial::start(0).await;
    let hot = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
               SELECT gen_random_uuid(), 'user.updated', 1000000, n, 'by-hand', clock_timestamp(), 'null'
               FROM generate_series(1, 20000) AS n";
    sqlx::raw_sql(hot).execute(&trial.world.pool).await.unwrap();
    trial.add(&[]).await;
    let load = trial.load(200);
    let since = SystemTime::now();
    until("events", async || trial.collector.count() > 500).await;
    sleep(Duration::from_secs(10)).await;
    let others = lag(&trial, since, "true").await;
    let left = trial.pending().await;
    eprintln!("  {left} of the 20,000 wait; the others: {others:?}");
    assert!(
        left > 1_000 && others.longest < Duration::from_secs(1) && others.repeated == 0,
        "{left}, {others:?}"
    );
    let tally = load.stop().await;
    let judgement = trial.judge(&tally).await;
    // Events inserted by hand have no change.
    assert!(
        judgement.lost.is_empty() && judgement.inverted.is_empty() && judgement.repeated.is_empty(),
        "{judgement:?}"
    );
}

/// Held events of as many users, as a former leader would have left them.
async fn insert_held_events(world: &World, count: u32) {
    for n in 0..count / 500_000 {
        let rows = format!(
            "INSERT INTO outbox_held (seq, event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
             SELECT nextval('outbox_seq_seq'), gen_random_uuid(), 'user.deleted', 1000000 + {n} * 500000 + n, 1, 'by-hand',
                    now(), 'null'
             FROM generate_series(1, 500000) AS n"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(rows))
            .execute(&world.pool)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_million_held_events_delay_no_others_under_any_leader() {
    const HELD: u32 = 10_000_000;
    let mut trial = Trial::start(0).await;
    let stranger = Observer::new(&trial.world).await;
    let policy = stranger.refuse_deletions(&trial.world).await;
    let began = Instant::now();
    insert_held_events(&trial.world, HELD).await;
    // Otherwise commits wait for the inserted rows to be flushed and vacuumed.
    for statement in ["VACUUM ANALYZE outbox_held", "CHECKPOINT"] {
        sqlx::query(statement)
            .execute(&trial.world.pool)
            .await
            .unwrap();
    }
    let filled = began.elapsed();
    trial.add(&[]).await;
    until("a leader", async || trial.replicas[0].leads().await).await;
    trial.add(&[]).await;
    let load = trial.load(500);
    let mut lags = Vec::new();
    for leader in 0..2 {
        let since = SystemTime::now();
        sleep(Duration::from_secs(20)).await;
        lags.push(lag(&trial, since, "event_type <> 'user.deleted'").await);
        eprintln!(
            "  p99 of writes: {:?}",
            load.tally
                .p99_between(Instant::now() - Duration::from_secs(20), Instant::now())
        );
        if leader == 0 {
            trial.replicas[0].signal("KILL");
            until("another leader", async || trial.replicas[1].leads().await).await;
        }
    }
    let left: i64 = trial.world.value("SELECT count(*) FROM outbox_held").await;
    eprintln!(
        "  {HELD} held in {filled:?}, {left} of them and later ones at the end; the others: \
         {lags:?}"
    );
    assert!(left > i64::from(HELD) - 10_000);
    assert!(
        lags.iter()
            .all(|others| others.longest < Duration::from_secs(1)),
        "{lags:?}"
    );
    // Draining them would take ten minutes.
    sqlx::raw_sql("DELETE FROM outbox_held WHERE trace_id = 'by-hand'")
        .execute(&trial.world.pool)
        .await
        .unwrap();
    management(Method::DELETE, &policy).await;
    trial.restart(0, &[]).await;
    let tally = load.stop().await;
    let judgement = trial.judge(&tally).await;
    // Events inserted by hand have no change.
    assert!(
        judgement.lost.is_empty() && judgement.inverted.is_empty(),
        "{judgement:?}"
    );
}

/// Inserts and deletes rows in one transaction, so that nobody ever sees them. Under an old
/// snapshot, vacuum cannot remove them.
async fn insert_dead_rows(world: &World, count: u32) {
    for _ in 0..count / 500_000 {
        // Without the audit's triggers.
        let rows = "SET LOCAL session_replication_role = replica;
                    INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                    SELECT '00000000-0000-0000-0000-000000000000', '', 1, 1, '', now(), 'null'
                    FROM generate_series(1, 500000);
                    DELETE FROM outbox WHERE trace_id = ''";
        let mut transaction = world.pool.begin().await.unwrap();
        sqlx::raw_sql(rows)
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }
}

const OLD_SNAPSHOT: &str = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_15_s_late_under_an_old_snapshot_keeps_user_order() {
    let trial = Trial::start(1).await;
    let mut holder = trial.world.pool.begin().await.unwrap();
    sqlx::raw_sql(OLD_SNAPSHOT)
        .execute(&mut *holder)
        .await
        .unwrap();
    insert_dead_rows(&trial.world, 1_000_000).await;
    let load = trial.load(300);
    let client = reqwest::Client::new();
    let put = async |user: i64, name: &str| {
        let url = format!("http://{}/users/{user}", trial.replica().address);
        client
            .put(url)
            .json(&json!({"name": name}))
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap()
    };
    for round in 0..2 {
        let late = 200 + round;
        put(late, "Раньше").await;
        let mut transaction = trial.world.pool.begin().await.unwrap();
        let write = format!(
            "WITH changed AS (UPDATE users SET name = 'Поздно', version = version + 1 WHERE id = {late} RETURNING version)
             INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
             SELECT gen_random_uuid(), 'user.updated', {late}, version, 'by-hand', now(), 'null' FROM changed"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(write))
            .execute(&mut *transaction)
            .await
            .unwrap();
        sleep(Duration::from_secs(15)).await;
        transaction.commit().await.unwrap();
        put(late, "Позже").await;
    }
    holder.rollback().await.unwrap();
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_starting_on_millions_of_dead_rows_skips_them_once() {
    let mut trial = Trial::start(0).await;
    let mut holder = trial.world.pool.begin().await.unwrap();
    sqlx::raw_sql(OLD_SNAPSHOT)
        .execute(&mut *holder)
        .await
        .unwrap();
    let began = Instant::now();
    insert_dead_rows(&trial.world, 4_000_000).await;
    let filled = began.elapsed();
    let began = Instant::now();
    trial.add(&[]).await;
    let client = reqwest::Client::new();
    let published = async |name: &str| {
        let began = Instant::now();
        let body = json!({"name": name, "surname": "Тестов", "password": "a-long-secret"});
        let url = format!("http://{}/users", trial.replica().address);
        client
            .post(url)
            .json(&body)
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        until("an empty outbox", async || {
            trial.world.outbox_is_empty().await
        })
        .await;
        began.elapsed()
    };
    published("Анна").await;
    let first = began.elapsed();
    trial.world.terminate_leader().await;
    let next = published("Яна").await;
    eprintln!(
        "  4,000,000 dead rows in {filled:?}: the first session publishes after {first:?}, the next \
         after {next:?}"
    );
    assert!(next < Duration::from_secs(2), "{next:?}");
    holder.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_long_transaction_without_events_delays_no_event() {
    let trial = Trial::start(1).await;
    let client = reqwest::Client::new();
    let published = async |name: &str| {
        let began = Instant::now();
        let body = json!({"name": name});
        let before = trial.collector.count();
        let url = format!("http://{}/users/1", trial.replica().address);
        client
            .put(url)
            .json(&body)
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        until("its event", async || trial.collector.count() > before).await;
        began.elapsed()
    };
    let mut other = trial.world.pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT pg_current_xact_id()")
        .execute(&mut *other)
        .await
        .unwrap();
    published("Анна").await;
    // Vacuum cannot remove them while it runs.
    insert_dead_rows(&trial.world, 4_000_000).await;
    published("Яна").await;
    // It is looked at every ten seconds.
    sleep(Duration::from_secs(12)).await;
    other.rollback().await.unwrap();
    let took = published("Ия").await;
    eprintln!("  4,000,000 dead rows behind: published after {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_cut_off_or_frozen_in_a_drain_is_replaced_in_12_s() {
    let world = World::new().await;
    let setting = world.direct_setting();
    let url = world.database_url.clone();
    let proxy = Proxy::before(&url).await;
    let by_proxy = proxy.url(&url);
    let mut trial = Trial::start_with(world, 0, &[]).await;
    sqlx::raw_sql("CREATE SEQUENCE by_hand")
        .execute(&trial.world.pool)
        .await
        .unwrap();
    trial.add(&[(setting, &by_proxy)]).await;
    until("a leader", async || trial.replicas[0].leads().await).await;
    trial.add(&[]).await;
    for way in ["cut off", "frozen"] {
        let before = trial.collector.count();
        insert_events(&trial.world, 100_000).await;
        until("a drain", async || trial.collector.count() > before + 5_000).await;
        if way == "frozen" {
            trial.replicas[0].signal("STOP");
        } else {
            proxy.silence();
        }
        let left = trial.pending().await;
        let began = Instant::now();
        assert!(left > 20_000, "{left} left: it was no drain");
        until("another leader", async || trial.replicas[1].leads().await).await;
        let moved = began.elapsed();
        eprintln!("  {way} with {left} events left: the lead moved in {moved:?}");
        assert!(moved < Duration::from_secs(12), "{way}: {moved:?}");
        if way == "frozen" {
            trial.replicas[0].signal("CONT");
        } else {
            proxy.open();
        }
        let mut tick = interval(Duration::from_millis(100));
        while !trial.world.outbox_is_empty().await {
            tick.tick().await;
        }
        until("a replica that is well", async || {
            trial.replicas[0].is("ready").await
        })
        .await;
        trial.replicas[1].signal("TERM");
        trial.replicas[1].exit_status().await;
        until("the first leads", async || trial.replicas[0].leads().await).await;
        trial.restart(1, &[]).await;
    }
    let load = trial.load(200);
    until("writes", async || load.tally.accepted() > 300).await;
    let tally = load.stop().await;
    let judgement = trial.judge(&tally).await;
    // Events inserted by hand have no change.
    assert!(
        judgement.lost.is_empty() && judgement.inverted.is_empty(),
        "{judgement:?}"
    );
}
