//! After a restore from a backup, subscribers that follow the guide agree with the service again.

use std::process::Stdio;

use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use tokio::io::{AsyncBufReadExt, BufReader};

use harness::{App, Copy, Observer, World, command, start, until};

/// Makes `copy` a copy of the database `of`, which must be unused.
async fn copy_database(world: &World, copy: &str, of: &str) {
    let alone = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ('{copy}', '{of}')"
    );
    let drop = format!("DROP DATABASE IF EXISTS {copy} (FORCE)");
    let create = format!("CREATE DATABASE {copy} TEMPLATE {of}");
    world.elsewhere(&[&alone, &drop, &create]).await;
}

async fn after_restore(world: &World, arguments: &[&str]) -> (bool, Value, String) {
    let arguments = [&["after-restore", "--format", "json"], arguments].concat();
    let output = command(&world.settings())
        .args(arguments)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (
        output.status.success(),
        serde_json::from_slice(&output.stdout).unwrap_or_default(),
        said,
    )
}

#[tokio::test]
async fn a_subscriber_that_follows_the_guide_agrees_after_a_restore() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let mut copy = Copy::default();
    let mut app = App::start(&world).await;
    let mut hear = async |count: usize, copy: &mut Copy| {
        for event in observer.next_bodies(count).await {
            copy.apply(&event);
        }
    };
    for name in ["Анна", "Яна", "Иван"] {
        app.create_user(name).await;
    }
    hear(3, &mut copy).await;
    world.until_outbox_is_empty().await;
    app.stop().await;
    let database = world.database();
    let backup = format!("{database}_backup");
    copy_database(&world, &backup, &database).await;

    // Lost, and seen by the subscriber.
    let mut app = App::start(&world).await;
    for name in ["А", "Б", "В"] {
        assert_eq!(
            app.put("/users/1", &json!({ "name": name })).await.status,
            200
        );
    }
    assert_eq!(app.delete("/users/2").await.status, 204);
    assert_eq!(app.create_user("Олег").await, 4);
    hear(5, &mut copy).await;
    world.until_outbox_is_empty().await;
    app.stop().await;
    copy_database(&world, &database, &backup).await;

    let (is_done, report, said) = after_restore(&world, &["--republish"]).await;
    assert!(is_done, "{said}");
    assert_eq!(
        (&report["lifted"], &report["step"], &report["next_id"]),
        (&json!(3), &json!(1_000_000), &json!(1_000_004))
    );
    assert!(
        report["remains"]
            .as_str()
            .unwrap()
            .contains("docs/subscribers.md"),
        "{report}"
    );
    let app = App::start(&world).await;
    hear(3, &mut copy).await;
    let list = app.get("/users").await.body;
    assert_eq!(list[0]["name"], "Анна");
    copy.compare(&list);
    copy.assert_is(&list);
    // From here on, as if nothing had happened.
    assert_eq!(app.create_user("Вера").await, 1_000_004);
    assert_eq!(
        app.put("/users/2", &json!({"name": "Ян"})).await.status,
        200
    );
    assert_eq!(app.delete("/users/3").await.status, 204);
    hear(3, &mut copy).await;
    copy.assert_is(&app.get("/users").await.body);
}

#[tokio::test]
async fn after_restore_lifts_no_versions_while_a_relay_leads() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    until("it leads", async || app.leads().await).await;
    let (is_done, _, said) = after_restore(&world, &[]).await;
    assert!(!is_done && said.contains("stop the service"), "{said}");
    assert_eq!(world.value::<i64>("SELECT version FROM users").await, 1);
}

#[tokio::test]
async fn a_killed_after_restore_run_resumes_and_lifts_no_user_twice() {
    const USERS: i64 = 60_000;
    let world = World::new().await;
    let users = format!(
        "INSERT INTO users (name, surname, password) SELECT 'Имя', 'Фамилия', '$argon2id$' FROM \
         generate_series(1, {USERS})"
    );
    sqlx::raw_sql(AssertSqlSafe(users))
        .execute(&world.pool)
        .await
        .unwrap();
    let mut first = command(&world.settings())
        .args(["after-restore", "--step", "10", "--republish"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut progress = BufReader::new(first.stderr.take().unwrap()).lines();
    let line = progress.next_line().await.unwrap().unwrap();
    assert!(line.contains("users lifted"), "{line}");
    first.kill().await.unwrap();
    until("its session has ended", async || {
        world
            .value("SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')")
            .await
    })
    .await;
    let lifted: i64 = world
        .value("SELECT count(*) FROM users WHERE version = 11")
        .await;
    assert!((1..USERS).contains(&lifted), "{lifted}");
    let (is_done, report, said) = after_restore(&world, &[]).await;
    assert!(is_done && said.contains("Resuming"), "{said}");
    assert_eq!(
        (&report["lifted"], &report["next_id"]),
        (&json!(USERS), &json!(USERS + 11))
    );
    let exact = "SELECT (SELECT bool_and(version = 11) FROM users)
                        AND (SELECT count(DISTINCT user_id) = 60000 AND count(*) = 60000 FROM outbox)";
    assert!(world.value::<bool>(exact).await);
    // A run that a backup restores was started on another server.
    sqlx::raw_sql("UPDATE lifts SET ended_at = NULL, server = 'another'")
        .execute(&world.pool)
        .await
        .unwrap();
    sqlx::raw_sql("UPDATE known_server SET timeline = 0")
        .execute(&world.pool)
        .await
        .unwrap();
    let (is_done, report, _) = after_restore(&world, &["--step", "5"]).await;
    assert!(is_done);
    assert_eq!(
        (&report["lifted"], &report["republish"]),
        (&json!(USERS), &json!(false))
    );
    assert!(
        world
            .value::<bool>("SELECT bool_and(version = 16) FROM users")
            .await
    );
    let app = App::start(&world).await;
    assert!(
        !app.log
            .text()
            .contains("is another one than at the last start")
    );
}

#[tokio::test]
async fn a_changed_database_server_causes_one_warning() {
    const WARNING: &str = "The database's server is another one than at the last start";
    let (world, mut app) = start().await;
    for change in ["timeline = timeline + 1", "system_identifier = '1'"] {
        app.stop().await;
        let is_another = |line: &Value| line["event"].as_str().unwrap().starts_with(WARNING);
        assert!(!app.log.text().contains(WARNING));
        sqlx::raw_sql(AssertSqlSafe(format!("UPDATE known_server SET {change}")))
            .execute(&world.pool)
            .await
            .unwrap();
        let mut warned = App::start(&world).await;
        until("a warning", async || {
            warned
                .log
                .text()
                .lines()
                .any(|line| is_another(&serde_json::from_str(line).unwrap()))
        })
        .await;
        assert!(warned.log.text().contains("after-restore"));
        warned.stop().await;
        app = App::start(&world).await;
    }
    assert!(!app.log.text().contains(WARNING));
}
