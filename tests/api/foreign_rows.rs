//! Rows and sequences that others have written: none stops the service, fails a committed change,
//! or reorders events.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use sqlx::migrate::Migrator;
use tokio::time::{Instant, interval};
use user_management_api::testing::MIGRATOR;

use super::poison::outbox;
use harness::{
    App, Observer, Proxy, World, as_login, command, eventually, new_user, start, start_observed,
    until,
};

async fn run(world: &World, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into()))
        .execute(&world.pool)
        .await
        .unwrap();
}

/// An event written by hand, with SQL expressions for what may be wrong.
fn event(event_type: &str, trace_id: &str, occurred_at: &str) -> String {
    format!(
        "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
         VALUES (gen_random_uuid(), {event_type}, 1, 7, {trace_id}, {occurred_at}, 'null')"
    )
}

/// Events that no relay can publish, each with its constraint and the reason.
fn unpublishable() -> [(String, &'static str, &'static str); 5] {
    let type_ = ("outbox_event_type_length", "event_type");
    let trace = ("outbox_trace_id_length", "trace_id");
    let time = ("outbox_occurred_at_finite", "occurred_at");
    [
        (event("repeat('x', 256)", "'t'", "now()"), type_.0, type_.1),
        (
            event("'user.updated'", "repeat('ы', 200)", "now()"),
            trace.0,
            trace.1,
        ),
        (event("'user.updated'", "'t'", "'infinity'"), time.0, time.1),
        (
            event("'user.updated'", "'t'", "'-infinity'"),
            time.0,
            time.1,
        ),
        (
            event("'user.updated'", "'t'", "'290000-01-01'"),
            time.0,
            time.1,
        ),
    ]
}

const WITHOUT_CONSTRAINTS: &str = "ALTER TABLE outbox DROP CONSTRAINT outbox_event_type_length,
    DROP CONSTRAINT outbox_trace_id_length, DROP CONSTRAINT outbox_occurred_at_finite";

#[tokio::test]
async fn the_database_refuses_a_hand_written_unpublishable_event() {
    let world = World::new().await;
    for (insert, constraint, _) in unpublishable() {
        let refused = sqlx::raw_sql(AssertSqlSafe(insert.clone()))
            .execute(&world.pool)
            .await
            .unwrap_err();
        assert_eq!(
            refused.as_database_error().unwrap().constraint(),
            Some(constraint),
            "{insert}"
        );
    }
    run(&world, event("'user.updated'", "'t'", "now()")).await;
}

async fn quarantine(world: &World) -> Vec<Value> {
    outbox(world, &["quarantine", "list"]).await.1["events"]
        .as_array()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn an_unconstrained_bad_event_is_quarantined_without_delay() {
    let (world, mut observer, app) = start_observed().await;
    until("it leads", async || app.leads().await).await;
    run(&world, WITHOUT_CONSTRAINTS).await;
    let mut reasons = Vec::new();
    for (insert, _, reason) in unpublishable() {
        run(&world, insert).await;
        reasons.push(reason);
    }
    run(&world, event("'user.updated'", "'by-hand'", "now()")).await;
    assert_eq!(observer.next_bodies(1).await[0]["trace_id"], "by-hand");
    world.until_outbox_is_empty().await;
    let quarantined = quarantine(&world).await;
    let mut found: Vec<_> = quarantined
        .iter()
        .map(|event| event["reason"].as_str().unwrap())
        .collect();
    for reason in reasons {
        let place = found
            .iter()
            .position(|found| found.contains(reason))
            .unwrap_or_else(|| panic!("{found:?}"));
        found.remove(place);
    }
    assert_eq!(found, [""; 0]);
    assert_eq!(
        app.log
            .matching("Session lost, starting it again", |_| true),
        [] as [Value; 0]
    );
    app.create_user("Анна").await;
    observer.next_bodies(1).await;
}

#[tokio::test]
async fn the_migration_quarantines_existing_unpublishable_events() {
    let world = World::empty().await;
    let mut before = Migrator::with_migrations(MIGRATOR.iter().take(5).cloned().collect());
    before
        .set_ignore_missing(true)
        .run(&world.pool)
        .await
        .unwrap();
    let unpublishable = unpublishable();
    let count = unpublishable.len();
    for (insert, ..) in unpublishable {
        run(&world, insert).await;
    }
    let mut observer = Observer::new(&world).await;
    run(&world, event("'user.updated'", "'by-hand'", "now()")).await;
    let _app = App::start(&world).await;
    assert_eq!(observer.next_bodies(1).await[0]["trace_id"], "by-hand");
    assert_eq!(quarantine(&world).await.len(), count);
}

#[tokio::test]
async fn no_user_row_fails_a_list_or_a_committed_change() {
    for (reads, writes) in [("true", "true"), ("false", "false")] {
        let world = World::new().await;
        let mut observer = Observer::new(&world).await;
        let app = App::start(&world)
            .with(&[("COALESCE_READS", reads), ("GROUP_COMMIT", writes)])
            .await;
        for name in ["Анна", "Яна", "Иван"] {
            app.create_user(name).await;
        }
        observer.next_bodies(3).await;
        run(
            &world,
            "UPDATE users SET created_at = 'infinity', updated_at = '-infinity' WHERE id = 2",
        )
        .await;
        run(
            &world,
            "INSERT INTO users (id, name, surname, password) OVERRIDING SYSTEM VALUE VALUES (-5, \
             'a', 'b', '$argon2id$')",
        )
        .await;
        let list = app.get("/users").await;
        let ids: Vec<_> = list
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["id"].as_i64().unwrap())
            .collect();
        assert_eq!(ids, [1, 2, 3], "{list:?}");
        let user = app.get("/users/2").await.body;
        assert_eq!(user["created_at"], "9999-12-31T23:59:59.999Z");
        assert_eq!(user["updated_at"], "0001-01-01T00:00:00.000Z");
        let changed = app.put("/users/2", &json!({"name": "Ян"})).await;
        assert_eq!(
            (changed.status.as_u16(), &changed.body["name"]),
            (200, &json!("Ян")),
            "{changed:?}"
        );
        assert_eq!(observer.next_bodies(1).await[0]["version"], 2);
        assert_eq!(app.delete("/users/2").await.status, 204);
        assert_eq!(observer.next_bodies(1).await[0]["version"], 3);
    }
}

#[tokio::test]
async fn user_ids_that_are_taken_are_skipped() {
    let (world, app) = start().await;
    let take = |from: u32, to: u32| {
        format!(
            "INSERT INTO users (id, name, surname, password) OVERRIDING SYSTEM VALUE
             SELECT id, 'a', 'b', '$argon2id$' FROM generate_series({from}, {to}) AS id"
        )
    };
    run(&world, take(1, 50)).await;
    assert_eq!(app.create_user("Анна").await, 51);
    run(&world, take(52, 500)).await;
    let created = join_all((0..8).map(|_| app.create_user("Яна"))).await;
    assert!(created.iter().all(|id| *id > 500), "{created:?}");
    assert_eq!(created.iter().collect::<HashSet<_>>().len(), 8);
}

#[tokio::test]
async fn taken_ids_it_may_not_skip_are_503_and_check_gives_the_sql() {
    let world = World::new().await;
    let role = format!("umapi_{}", uuid::Uuid::new_v4().simple());
    let grants = format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'narrow'; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
         GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role};
         INSERT INTO users (id, name, surname, password) OVERRIDING SYSTEM VALUE
         SELECT id, 'a', 'b', '$argon2id$' FROM generate_series(1, 100) AS id"
    );
    run(&world, grants).await;
    let url = as_login(&world.database_url, &role, "narrow");
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &url), ("DATABASE_DIRECT_URL", "")])
        .await;
    let refused = app.post("/users", &new_user("Анна")).await;
    refused.assert_problem(503, "database_unavailable");
    assert!(
        refused.body["detail"].as_str().unwrap().contains("check"),
        "{refused:?}"
    );
    let check = async || {
        let output = command(&world.settings())
            .args(["check", "--format", "json"])
            .output()
            .await
            .unwrap();
        let report: Value = serde_json::from_str(
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()
                .unwrap(),
        )
        .unwrap();
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|finding| finding["check"] == "sequences")
            .unwrap()
            .clone()
    };
    let finding = check().await;
    assert_eq!(finding["result"], "failed");
    run(&world, finding["to_do"].as_str().unwrap()).await;
    assert_eq!(check().await["result"], "ok");
    assert_eq!(app.create_user("Анна").await, 101);
    drop(app);
    let sessions_ended =
        format!("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE usename = '{role}')");
    until("its sessions ended", async || {
        sqlx::query_scalar::<_, bool>(AssertSqlSafe(sessions_ended.clone()))
            .fetch_one(&world.pool)
            .await
            .unwrap()
    })
    .await;
    run(&world, format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_sequence_set_back_while_running_delays_at_most_one_event() {
    let (world, mut observer, app) = start_observed().await;
    for id in 1..=3 {
        assert_eq!(app.create_user("Анна").await, id);
    }
    observer.next_bodies(3).await;
    world.until_outbox_is_empty().await;
    run(&world, "TRUNCATE outbox RESTART IDENTITY").await;
    let rename = async |user: u32, name: String| {
        let body = json!({ "name": name });
        assert_eq!(app.put(&format!("/users/{user}"), &body).await.status, 200);
    };
    rename(1, "первое".to_owned()).await;
    observer.next_bodies(1).await;
    let began = Instant::now();
    for round in 0..10 {
        rename(2, format!("Имя {round}")).await;
        assert_eq!(observer.next_bodies(1).await[0]["version"], round + 2);
    }
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_row_with_an_early_drawn_position_is_published_under_load() {
    let (world, mut observer, app) = start_observed().await;
    let user = app.create_user("Анна").await;
    let position: i64 = world
        .value("SELECT nextval(pg_get_serial_sequence('outbox', 'seq'))")
        .await;
    let by_hand = uuid::Uuid::now_v7();
    let insert = format!(
        "INSERT INTO outbox (seq, event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
         OVERRIDING SYSTEM VALUE
         VALUES ({position}, '{by_hand}', 'user.updated', 1000, 1, 'by-hand', now(), 'null')"
    );
    let mut tick = interval(Duration::from_millis(5));
    let mut inserted = None;
    for n in 0.. {
        tick.tick().await;
        let body = json!({"name": format!("Имя {n}")});
        assert_eq!(app.put(&format!("/users/{user}"), &body).await.status, 200);
        if n == 200 {
            run(&world, &insert).await;
            inserted = Some(Instant::now());
        }
        if observer.next_bodies(1).await[0]["event_id"] == by_hand.to_string() {
            break;
        }
        assert!(
            inserted.is_none_or(|at| at.elapsed() < Duration::from_secs(10)),
            "{n} events later"
        );
    }
    world.until_outbox_is_empty().await;
}

#[tokio::test]
async fn a_sequence_below_waiting_events_is_raised_before_relaying() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let proxy = Proxy::before(&world.broker_url).await;
    let app = App::start(&world)
        .with(&[("RABBITMQ_URL", &proxy.url(&world.broker_url))])
        .await;
    app.create_user("Анна").await;
    observer.next_bodies(1).await;
    world.until_outbox_is_empty().await;
    proxy.close();
    app.until_ready("degraded").await;
    assert_eq!(
        app.put("/users/1", &json!({"name": "Яна"})).await.status,
        200
    );
    // As after a restore that brings the rows and not the sequences.
    run(
        &world,
        "UPDATE outbox SET seq = DEFAULT; ALTER TABLE outbox ALTER seq DROP IDENTITY",
    )
    .await;
    run(
        &world,
        "UPDATE outbox SET seq = 1000;
         ALTER TABLE outbox ALTER seq ADD GENERATED ALWAYS AS IDENTITY (CACHE 1)",
    )
    .await;
    proxy.open();
    assert_eq!(observer.next_bodies(1).await[0]["version"], 2);
    app.log
        .wait_for(
            "The outbox's sequence was below events that wait, and was lifted",
            |_| true,
        )
        .await;
    assert_eq!(
        app.put("/users/1", &json!({"name": "Ян"})).await.status,
        200
    );
    assert_eq!(observer.next_bodies(1).await[0]["version"], 3);
    let last: i64 = world.value("SELECT last_value FROM outbox_seq_seq").await;
    assert!(last > 1000, "{last}");
}

#[tokio::test]
async fn a_sequence_with_a_cache_prevents_leading() {
    let world = World::new().await;
    run(&world, "ALTER TABLE outbox ALTER seq SET CACHE 32").await;
    let check = command(&world.settings())
        .arg("check")
        .output()
        .await
        .unwrap();
    let app = App::start(&world).await;
    let found = String::from_utf8_lossy(&check.stdout);
    assert!(
        !check.status.success() && found.contains("ALTER TABLE outbox ALTER seq SET CACHE 1"),
        "{found}"
    );
    let lost = |line: &Value| {
        line["error"]
            .as_str()
            .is_some_and(|error| error.contains("SET CACHE 1"))
    };
    app.log
        .wait_for("Session lost, starting it again", lost)
        .await;
    assert!(!app.leads().await);
    run(&world, "ALTER TABLE outbox ALTER seq SET CACHE 1").await;
    eventually("it leads", async || app.leads().await.then_some(())).await;
}
