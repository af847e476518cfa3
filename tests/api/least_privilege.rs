//! The service with logins that own nothing and have only the rights that `docs/operations.md`
//! grants.

use reqwest::Method;
use serde_json::{Value, json};

use harness::{
    App, Observer, PASSWORD, World, as_login, command, eventually, management, management_put,
    new_user, start, until,
};

const WITHOUT_CONSTRAINT: &str = "ALTER TABLE outbox DROP CONSTRAINT outbox_occurred_at_finite;
    INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
    VALUES (gen_random_uuid(), 'user.updated', 1, 7, 't', 'infinity', 'null')";

const GUIDE: &str = include_str!("../../docs/operations.md");

/// The block of the guide that starts with `beginning`.
fn block(language: &str, beginning: &str) -> &'static str {
    let beginning = format!("```{language}\n{beginning}");
    let start = GUIDE
        .find(&beginning)
        .unwrap_or_else(|| panic!("the guide has no {beginning}"))
        + language.len()
        + 4;
    GUIDE[start..].split("```").next().unwrap()
}

/// The quoted expressions of a management command in the guide.
fn quoted(line: &str) -> Vec<&str> {
    line.split('\'').skip(1).step_by(2).collect()
}

/// Creates a PostgreSQL login with the guide's rights. Returns it with its URL.
async fn database_login(world: &World) -> (String, String) {
    let role = format!("umapi_{}", uuid::Uuid::new_v4().simple());
    let grants = block("sql", "GRANT SELECT (version").replace("umapi", &role);
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'narrow'; {grants}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create))
        .execute(&world.pool)
        .await
        .unwrap();
    let url = as_login(&world.database_url, &role, "narrow");
    (role, url)
}

async fn drop_login(world: &World, role: &str) {
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop))
        .execute(&world.pool)
        .await
        .unwrap();
}

/// Creates a RabbitMQ login with the rights of the guide's command that starts with `beginning`.
/// Returns it with its URL.
async fn broker_login(world: &World, beginning: &str) -> (String, String) {
    let name = format!("umapi-{}", uuid::Uuid::new_v4().simple());
    management_put(
        &format!("/api/users/{name}"),
        &json!({"password": "narrow", "tags": ""}),
    )
    .await;
    for line in block("bash", beginning).lines() {
        match quoted(line)[..] {
            [configure, write, read] => {
                let rights = json!({"configure": configure, "write": write, "read": read});
                management_put(
                    &format!("/api/permissions/{}/{name}", world.virtual_host),
                    &rights,
                )
                .await;
            }
            [write, read] => {
                let rights = json!({"exchange": "user_events", "write": write, "read": read});
                management_put(
                    &format!("/api/topic-permissions/{}/{name}", world.virtual_host),
                    &rights,
                )
                .await;
            }
            _ => panic!("{line}"),
        }
    }
    let url = as_login(&world.broker_url, &name, "narrow");
    (name, url)
}

async fn check(world: &World, settings: &[(&str, &str)]) -> (bool, String) {
    let output = command(&[&world.settings()[..], settings].concat())
        .arg("check")
        .output()
        .await
        .unwrap();
    (
        output.status.success(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

/// Exercises everything that clients use and waits for the consumer's log lines.
async fn assert_works(app: &App) {
    let id = app.create_user("Анна").await;
    for change in [
        json!({"name": "Яна"}),
        json!({"surname": "Ли", "password": PASSWORD}),
        json!({}),
    ] {
        let answer = app.put(&format!("/users/{id}"), &change).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(app.get(&format!("/users/{id}")).await.body["name"], "Яна");
    assert_eq!(app.get("/users").await.header("x-total-count"), "1");
    assert_eq!(app.delete(&format!("/users/{id}")).await.status, 204);
    app.log
        .wait_for("Event received", |line| {
            line["event_type"] == "user.deleted"
        })
        .await;
    assert!(
        !app.get("/metrics")
            .await
            .text
            .contains("outbox_pending NaN")
    );
    assert_eq!(
        app.log
            .matching("Session lost, starting it again", |_| true),
        [] as [Value; 0]
    );
}

#[tokio::test]
async fn a_login_that_owns_nothing_can_run_the_whole_service() {
    let world = World::new().await;
    let (role, url) = database_login(&world).await;
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", &url),
        ("MIGRATE_ON_START", "true"),
    ];
    let (passes, report) = check(&world, &settings).await;
    assert!(passes, "{report}");
    for grouped in ["true", "false"] {
        let app = App::start(&world)
            .with(&[&settings[..], &[("GROUP_COMMIT", grouped)]].concat())
            .await;
        assert_works(&app).await;
    }
    let _app = App::start(&world).with(&settings).await;
    sqlx::raw_sql(WITHOUT_CONSTRAINT)
        .execute(&world.pool)
        .await
        .unwrap();
    until("an event in quarantine", async || {
        world
            .value("SELECT count(*) = 1 FROM outbox_quarantine")
            .await
            && world.outbox_is_empty().await
    })
    .await;
    drop_login(&world, &role).await;
}

#[tokio::test]
async fn each_missing_right_on_the_database_is_named_with_its_grant() {
    let world = World::new().await;
    let (role, url) = database_login(&world).await;
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", &url),
    ];
    for right in [
        "SELECT (version, success) ON _sqlx_migrations",
        "UPDATE (name, surname, password, version, updated_at) ON users",
        "SELECT (id, name, surname, version, created_at, updated_at) ON users",
        "DELETE ON outbox",
        "INSERT ON outbox_held",
        "INSERT (users) ON users_count",
    ] {
        let change = |what: &str| sqlx::AssertSqlSafe(format!("{what} {role}"));
        sqlx::query(change(&format!("REVOKE {right} FROM")))
            .execute(&world.pool)
            .await
            .unwrap();
        let (passes, report) = check(&world, &settings).await;
        let flat = report.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            !passes && flat.contains(&format!("GRANT {right} TO {role};")),
            "{right}: {report}"
        );
        sqlx::query(change(&format!("GRANT {right} TO")))
            .execute(&world.pool)
            .await
            .unwrap();
    }
    let (passes, report) = check(&world, &settings).await;
    assert!(passes, "{report}");
    drop_login(&world, &role).await;
}

#[tokio::test]
async fn a_login_without_declare_rights_uses_the_declared_topology() {
    let (world, operations) = start().await;
    drop(operations);
    let (name, url) = broker_login(&world, "rabbitmqctl set_permissions -p VHOST umapi '^$'").await;
    let settings = [("RABBITMQ_URL", url.as_str())];
    let (passes, report) = check(&world, &settings).await;
    assert!(passes, "{report}");
    let app = App::start(&world).with(&settings).await;
    assert_works(&app).await;
    app.log
        .wait_for("This login may not declare it, using it as it is", |line| {
            line["name"] == "user_events_queue" && line["level"] == "warning"
        })
        .await;
    // Unreadable messages still reach the dead-letter queue.
    let observer = Observer::new(&world).await;
    observer.publish("user.created", b"not json").await;
    eventually("a dead letter", || observer.take("user_events_queue.dlq")).await;
    management(Method::DELETE, &format!("/api/users/{name}")).await;
}

#[tokio::test]
async fn each_missing_right_on_the_broker_is_named() {
    let (world, operations) = start().await;
    drop(operations);
    let (name, url) = broker_login(
        &world,
        "rabbitmqctl set_permissions -p VHOST umapi '^user_events'",
    )
    .await;
    let path = format!("/api/permissions/{}/{name}", world.virtual_host);
    let rights = [
        "^$",
        "^(user_events(\\.dlx)?|amq\\.default)$",
        "^user_events_queue(\\.dlq)?$",
    ];
    for (write, read, named) in [
        (
            "^(user_events\\.dlx|amq\\.default)$",
            rights[2],
            "may not write to user_events",
        ),
        (
            "^(user_events|amq\\.default)$",
            rights[2],
            "may not write to user_events.dlx",
        ),
        (
            "^user_events(\\.dlx)?$",
            rights[2],
            "may not write to amq.default",
        ),
        (
            rights[1],
            "^user_events_queue\\.dlq$",
            "may not read user_events_queue",
        ),
        (
            rights[1],
            "^user_events_queue$",
            "may not read user_events_queue.dlq",
        ),
    ] {
        management_put(
            &path,
            &json!({"configure": rights[0], "write": write, "read": read}),
        )
        .await;
        let (passes, report) = check(&world, &[("RABBITMQ_URL", &url)]).await;
        assert!(
            !passes && report.contains(named) && report.contains("set_permissions"),
            "{named}: {report}"
        );
    }
    management(Method::DELETE, &format!("/api/users/{name}")).await;
}

#[tokio::test]
async fn the_service_login_cannot_read_password_hashes() {
    let world = World::new().await;
    let (role, url) = database_login(&world).await;
    let app = App::start(&world)
        .with(&[("DATABASE_URL", &url), ("DATABASE_DIRECT_URL", &url)])
        .await;
    assert_eq!(app.post("/users", &new_user("Анна")).await.status, 201);
    let reader = sqlx::PgPool::connect(&url).await.unwrap();
    let refused = sqlx::query("SELECT password FROM users")
        .execute(&reader)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("permission denied"),
        "{refused}"
    );
    reader.close().await;
    drop(app);
    drop_login(&world, &role).await;
}
