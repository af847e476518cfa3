//! `check` reports what a start would fail on, and the remedy.

use reqwest::Method;
use serde_json::{Value, json};

use crate::api::commands::run;
use harness::{World, as_login, management, management_put};

/// Runs `check` with these settings on top of the world's. Returns whether the service could run,
/// and the finding called `name`.
async fn check(world: &World, settings: &[(&str, &str)], name: &str) -> (bool, Value) {
    let settings = [&world.settings()[..], settings].concat();
    let (output, text) = run(&["check", "--format", "json"], &settings).await;
    let report: Value = serde_json::from_str(text.lines().next().unwrap())
        .unwrap_or_else(|error| panic!("{error} in {text}"));
    let finding = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["check"] == name);
    (
        output.status.success(),
        finding
            .unwrap_or_else(|| panic!("no {name} in {report}"))
            .clone(),
    )
}

async fn assert_failed(world: &World, settings: &[(&str, &str)], name: &str, to_do: &str) {
    let (passed, finding) = check(world, settings, name).await;
    assert!(!passed && finding["result"] == "failed", "{finding}");
    assert!(
        finding["to_do"].as_str().unwrap().contains(to_do),
        "{finding}"
    );
    assert!(!finding.to_string().contains("hunter22"), "{finding}");
}

#[tokio::test]
async fn check_passes_usable_servers_even_before_the_migrations() {
    let world = World::new().await;
    let empty = World::empty().await;
    for name in [
        "settings",
        "database",
        "migrations",
        "broker",
        "permissions",
    ] {
        let (passed, finding) = check(&world, &[], name).await;
        assert!(passed && finding["result"] == "ok", "{finding}");
    }
    assert_eq!(
        check(&empty, &[], "migrations").await.1["found"],
        "to be applied at the start"
    );
    assert_failed(
        &empty,
        &[("MIGRATE_ON_START", "false")],
        "migrations",
        "user-management-api migrate",
    )
    .await;
    let (output, text) = run(&["check"], &world.settings()).await;
    assert!(
        output.status.success() && text.starts_with("CHECK"),
        "{text}"
    );
}

#[tokio::test]
async fn check_names_bad_settings_before_it_connects() {
    for arguments in [&["check"][..], &["check", "--settings"]] {
        let (output, text) = run(arguments, &[("PORT", "x"), ("RABBITMQ_URL", "x")]).await;
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("PORT: ")
                && text.contains("RABBITMQ_URL: ")
                && text.contains("DATABASE_URL: "),
            "{text}"
        );
    }
}

#[tokio::test]
async fn check_reports_an_unusable_database_with_the_remedy() {
    let world = World::new().await;
    let with = |from: &str, to: &str| {
        let url = world.database_url.replacen(from, to, 1);
        assert_ne!(url, world.database_url);
        url
    };
    let away = "postgresql://u:hunter22@127.0.0.1:1/d";
    assert_failed(
        &world,
        &[("DATABASE_URL", away)],
        "database",
        "start PostgreSQL there",
    )
    .await;
    let stranger = as_login(&world.database_url, "postgres", "hunter22");
    assert_failed(
        &world,
        &[("DATABASE_URL", &stranger)],
        "database",
        "correct user and password in DATABASE_URL",
    )
    .await;
    let missing = with("/test_", "/missing_");
    assert_failed(
        &world,
        &[("DATABASE_URL", &missing)],
        "database",
        "CREATE DATABASE",
    )
    .await;
}

#[tokio::test]
async fn check_refuses_a_foreign_users_table_and_missing_grants() {
    let foreign = World::empty().await;
    let world = World::new().await;
    sqlx::query("CREATE TABLE users (id int)")
        .execute(&foreign.pool)
        .await
        .unwrap();
    assert_failed(&foreign, &[], "migrations", "a database of its own").await;
    let role = format!("guest_{}", uuid::Uuid::new_v4().simple());
    let create = sqlx::AssertSqlSafe(format!("CREATE ROLE {role} LOGIN PASSWORD 'hunter22'"));
    sqlx::query(create).execute(&world.pool).await.unwrap();
    let url = as_login(&world.database_url, &role, "hunter22");
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", &url),
    ];
    let grant = sqlx::AssertSqlSafe(format!("GRANT SELECT ON _sqlx_migrations TO {role}"));
    sqlx::query(grant).execute(&world.pool).await.unwrap();
    assert_failed(&world, &settings, "migrations", "GRANT SELECT, INSERT").await;
    let grant = sqlx::AssertSqlSafe(format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"
    ));
    sqlx::query(grant).execute(&world.pool).await.unwrap();
    assert!(check(&world, &settings, "migrations").await.0);
    let drop = sqlx::AssertSqlSafe(format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    sqlx::raw_sql(drop).execute(&world.pool).await.unwrap();
}

#[tokio::test]
async fn check_reports_a_refusing_broker_and_publishes_nothing() {
    let world = World::new().await;
    let with = |url: &str| [("RABBITMQ_URL", url.to_owned())];
    let stranger = as_login(&world.broker_url, "guest", "hunter22");
    for (url, to_do) in [
        ("amqp://u:hunter22@127.0.0.1:1/", "start RabbitMQ there"),
        (stranger.as_str(), "correct user, password and virtual host"),
        (
            &format!("{}_missing", world.broker_url),
            "correct user, password and virtual host",
        ),
    ] {
        let settings = with(url);
        assert_failed(&world, &[(settings[0].0, &settings[0].1)], "broker", to_do).await;
    }
    let permissions = format!("/api/topic-permissions/{}/guest", world.virtual_host);
    let no_deletions =
        json!({"exchange": "user_events", "write": "^user.(created|updated)$", "read": ".*"});
    management_put(&permissions, &no_deletions).await;
    assert_failed(
        &world,
        &[],
        "permissions",
        "rabbitmqctl set_topic_permissions",
    )
    .await;
    management(Method::DELETE, &permissions).await;
    assert!(check(&world, &[], "permissions").await.0);
    let name = format!("narrow-{}", uuid::Uuid::new_v4().simple());
    management_put(
        &format!("/api/users/{name}"),
        &json!({"password": "narrow", "tags": ""}),
    )
    .await;
    let permissions = format!("/api/permissions/{}/{name}", world.virtual_host);
    management_put(
        &permissions,
        &json!({"configure": "^user_events", "write": "^nothing$", "read": ".*"}),
    )
    .await;
    let url = as_login(&world.broker_url, &name, "narrow");
    assert_failed(
        &world,
        &[("RABBITMQ_URL", &url)],
        "permissions",
        "rabbitmqctl set_permissions",
    )
    .await;
    let advised = json!({"configure": "^user_events", "write": "^(user_events|amq\\.default$)", "read": "^user_events"});
    management_put(&permissions, &advised).await;
    assert!(
        check(&world, &[("RABBITMQ_URL", &url)], "permissions")
            .await
            .0
    );
    management(Method::DELETE, &format!("/api/users/{name}")).await;
}
