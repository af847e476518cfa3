//! The schema is applied by `migrate` or at the start: once, and never in part.

use std::collections::BTreeMap;
use std::process::Stdio;

use sqlx::AssertSqlSafe;
use sqlx::migrate::Migrator;

use harness::{App, World, command};

async fn migrate(world: &World) -> std::process::Output {
    command(&[("DATABASE_URL", &world.database_url)])
        .arg("migrate")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn migrate_creates_the_original_table_and_is_idempotent() {
    let world = World::empty().await;
    for _ in 0..2 {
        let output = migrate(&world).await;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let columns: Vec<(String, String, bool)> = sqlx::query_as(
        "SELECT column_name::text, data_type::text, is_nullable = 'YES' FROM information_schema.columns
         WHERE table_name = 'users' ORDER BY ordinal_position",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    let columns: Vec<_> = columns
        .iter()
        .map(|(name, kind, nullable)| (name.as_str(), kind.as_str(), *nullable))
        .collect();
    assert_eq!(
        columns,
        [
            ("id", "bigint", false),
            ("name", "text", false),
            ("surname", "text", false),
            ("password", "text", false),
            ("version", "bigint", false),
            ("created_at", "timestamp with time zone", false),
            ("updated_at", "timestamp with time zone", false),
        ]
    );
}

#[tokio::test]
async fn migrate_waits_for_a_locked_table_without_blocking_others() {
    let world = World::empty().await;
    let output = migrate(&world).await;
    assert!(output.status.success(), "{output:?}");
    let mut lock = world.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE _sqlx_migrations")
        .execute(&mut *lock)
        .await
        .unwrap();
    let app = App::start(&world).launch().await;
    let line = app
        .log
        .wait_for("The database is unavailable, trying again", |_| true)
        .await;
    assert!(
        line["error"].as_str().unwrap().contains("lock timeout"),
        "{line}"
    );
    lock.rollback().await.unwrap();
    app.until_ready("ready").await;
}

#[tokio::test]
async fn without_migrate_on_start_it_is_not_ready_until_migrated() {
    let world = World::empty().await;
    let app = App::start(&world)
        .with(&[("MIGRATE_ON_START", "false")])
        .launch()
        .await;
    let answer = app.get("/health/ready").await;
    answer.assert_problem(503, "not_ready");
    assert_eq!(answer.body["checks"]["schema"], "pending");
    app.get("/users")
        .await
        .assert_problem(503, "database_unavailable");
    app.log
        .wait_for(
            "Migrations are pending: run `user-management-api migrate`",
            |_| true,
        )
        .await;
    assert!(migrate(&world).await.status.success());
    app.until_ready("ready").await;
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| line["user_id"] == 1)
        .await;
}

#[tokio::test]
async fn an_applied_migration_that_was_edited_ends_the_start_with_1() {
    let world = World::new().await;
    sqlx::query("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1")
        .execute(&world.pool)
        .await
        .unwrap();
    let mut app = App::start(&world).launch().await;
    assert_eq!(app.exit_status().await.code(), Some(1));
    app.log
        .wait_for("Failed", |line| {
            line["error"]
                .as_str()
                .is_some_and(|error| error.contains('1'))
        })
        .await;
}

#[tokio::test]
async fn a_binary_older_than_the_schema_starts_for_a_rollback() {
    let world = World::new().await;
    let newer =
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'from the future', true, '\\x00', 0)";
    sqlx::query(newer).execute(&world.pool).await.unwrap();
    App::start(&world).await;
}

#[tokio::test]
async fn the_database_refuses_a_password_that_is_not_an_argon2id_hash() {
    let world = World::new().await;
    let insert = "INSERT INTO users (name, surname, password) VALUES ('А', 'Б', 'secret123')";
    assert!(sqlx::query(insert).execute(&world.pool).await.is_err());
}

/// The rows for each migration that has some, by its version.
fn rows() -> BTreeMap<i64, String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/migrations");
    let files = std::fs::read_dir(folder).unwrap();
    files
        .map(|file| {
            let path = file.unwrap().path();
            let version = path.file_stem().unwrap().to_str().unwrap().parse();
            (version.unwrap(), std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn rows_of_each_migration_survive_all_later_ones() {
    let world = World::empty().await;
    let steps: Vec<_> = sqlx::migrate!().iter().cloned().collect();
    let mut rows = rows();
    for applied in 1..=steps.len() {
        let migrator = Migrator::with_migrations(steps[..applied].to_vec());
        migrator.run(&world.pool).await.unwrap();
        if let Some(rows) = rows.remove(&steps[applied - 1].version) {
            sqlx::raw_sql(AssertSqlSafe(rows))
                .execute(&world.pool)
                .await
                .unwrap();
        }
    }
    assert!(rows.is_empty(), "of no step: {rows:?}");
    let app = App::start(&world).await;
    let users = app.get("/users").await;
    assert_eq!(users.header("x-total-count"), "2");
    assert_eq!(
        (&users.body[0]["name"], &users.body[1]["name"]),
        (&"Анна".into(), &"Вера".into())
    );
    for trace_id in ["step-2", "step-10"] {
        app.log
            .wait_for("Event received", |line| line["trace_id"] == trace_id)
            .await;
    }
    let quarantined: Vec<String> = sqlx::query_scalar(
        "SELECT right(event_id::text, 2) FROM outbox_quarantine ORDER BY event_id",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert_eq!(quarantined, ["03", "05", "51", "52", "53"]);
}
