//! A database in an unexpected state: read-only, altered while the service runs, shared by two
//! schemas, closed to connections, or in another encoding.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::time::Instant;

use harness::{App, Observer, World, as_login, command, eventually, new_user, start, until};

async fn set_read_only(world: &World, value: &str) {
    let set = format!(
        "ALTER DATABASE {} SET default_transaction_read_only = {value}",
        world.database()
    );
    world.elsewhere(&[&set]).await;
}

#[tokio::test]
async fn a_read_only_database_serves_reads_and_later_the_first_write() {
    let world = World::new().await;
    let mut observer = Observer::new(&world).await;
    let app = App::start(&world).with(&world.without_pooler()).await;
    app.create_user("Анна").await;
    observer.next_bodies(1).await;
    set_read_only(&world, "on").await;
    world.terminate_connections().await;
    until("a write is refused", async || {
        app.put("/users/1", &json!({"name": "Яна"})).await.status == 503
    })
    .await;
    app.put("/users/1", &json!({"name": "Яна"}))
        .await
        .assert_problem(503, "database_read_only");
    app.put("/users/1", &json!({"password": "not-this-time"}))
        .await
        .assert_problem(503, "database_read_only");
    app.post("/users", &new_user("Яна"))
        .await
        .assert_problem(503, "database_read_only");
    app.delete("/users/1")
        .await
        .assert_problem(503, "database_read_only");
    assert_eq!(app.get("/users/1").await.body["name"], "Анна");
    assert_eq!(app.get("/users").await.status, 200);
    let health = app.get("/health/ready").await;
    assert_eq!(
        (health.status.as_u16(), &health.body["status"]),
        (200, &json!("degraded"))
    );
    assert_eq!(health.body["checks"]["database"], "read_only");
    assert_eq!(app.metric("database_read_only").await, 1);
    until("nobody leads", async || !app.leads().await).await;

    set_read_only(&world, "off").await;
    let began = Instant::now();
    let rename = json!({"name": "Яна"});
    let new = new_user("Иван");
    let (put, post) = tokio::join!(app.put("/users/1", &rename), app.post("/users", &new));
    assert_eq!(
        (put.status.as_u16(), post.status.as_u16()),
        (200, 201),
        "{put:?} {post:?}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    until("it leads", async || app.leads().await).await;
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    observer.next_bodies(2).await;
    app.until_ready("ready").await;
    assert_eq!(app.metric("database_read_only").await, 0);
}

#[tokio::test]
async fn a_change_of_a_column_type_fails_no_request() {
    let (world, app) = start().await;
    for user in ["Анна", "Яна"] {
        app.create_user(user).await;
    }
    let use_all = async |round: u32| {
        let path = "/users/1";
        let new_name = json!({"name": format!("Имя {round}")});
        let new_one = new_user("Иван");
        let answers = tokio::join!(
            join_all((0..20).map(|_| app.get(path))),
            app.get("/users"),
            app.put(path, &new_name),
            app.post("/users", &new_one),
        );
        let created = &answers.3;
        let deleted = app.delete(created.header("location")).await;
        let statuses = answers
            .0
            .iter()
            .chain([&answers.1, &answers.2, &answers.3, &deleted]);
        let failed: Vec<_> = statuses
            .filter(|answer| !answer.status.is_success())
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
    };
    use_all(0).await;
    for (round, length) in [(1, 300), (2, 301)] {
        let change = format!("ALTER TABLE users ALTER COLUMN name TYPE varchar({length})");
        sqlx::query(AssertSqlSafe(change))
            .execute(&world.pool)
            .await
            .unwrap();
        use_all(round).await;
    }
}

#[tokio::test]
async fn the_service_waits_for_a_database_that_refuses_connections() {
    let world = World::new().await;
    let role = format!("umapi_{}", uuid::Uuid::new_v4().simple());
    let create = format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'narrow'");
    sqlx::raw_sql(AssertSqlSafe(create))
        .execute(&world.pool)
        .await
        .unwrap();
    let url = as_login(&world.database_url, &role, "narrow");
    let narrow = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", url.as_str()),
    ];
    let app = App::start(&world).with(&narrow).await;
    app.create_user("Анна").await;
    let database = world.database();
    let closed = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false");
    let open = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true");
    let forbidden =
        format!("REVOKE CONNECT ON DATABASE {database} FROM public; ALTER ROLE {role} NOSUPERUSER");
    let allowed = format!("ALTER ROLE {role} SUPERUSER");
    for (close, reopen, advice) in [
        (closed, open, "ALLOW_CONNECTIONS"),
        (forbidden, allowed, "GRANT CONNECT"),
    ] {
        world.elsewhere(&[&close]).await;
        world
            .elsewhere(&[&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = \
                 '{database}'"
            )])
            .await;
        until("it is not ready", async || {
            app.get("/health/ready").await.status == 503
        })
        .await;
        app.get("/users/1")
            .await
            .assert_problem(503, "database_unavailable");
        app.put("/users/1", &json!({"name": "Яна"}))
            .await
            .assert_problem(503, "database_unavailable");
        app.post("/users", &new_user("Яна"))
            .await
            .assert_problem(503, "database_unavailable");
        let settings = [world.settings(), narrow.to_vec()].concat();
        let check = command(&settings).arg("check").output().await.unwrap();
        assert!(
            String::from_utf8_lossy(&check.stdout).contains(advice),
            "{check:?}"
        );
        // A service that starts now waits.
        let second = App::start(&world).with(&narrow).launch().await;
        second
            .log
            .wait_for("The database is unavailable, trying again", |_| true)
            .await;
        world.elsewhere(&[&reopen]).await;
        second.until_ready("ready").await;
        app.until_ready("ready").await;
    }
    world.elsewhere(&[&format!("DROP ROLE {role}")]).await;
}

#[tokio::test]
async fn requests_before_the_migrations_answer_that_they_are_pending() {
    let world = World::empty().await;
    let app = App::start(&world)
        .with(&[("MIGRATE_ON_START", "false")])
        .launch()
        .await;
    for answer in [
        app.get("/users/1").await,
        app.get("/users").await,
        app.post("/users", &new_user("Анна")).await,
    ] {
        answer.assert_problem(503, "database_unavailable");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(
            detail.contains("migrations are pending") && !detail.contains("did not answer"),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn two_schemas_of_one_database_each_have_a_leader() {
    let world = World::empty().await;
    let mut apps = Vec::new();
    for schema in ["one", "two"] {
        sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
            .execute(&world.pool)
            .await
            .unwrap();
        let url = format!("{}?options=-c%20search_path%3D{schema}", world.database_url);
        apps.push(
            App::start(&world)
                .with(&[("DATABASE_URL", &url), ("DATABASE_DIRECT_URL", &url)])
                .await,
        );
    }
    let mut observer = Observer::new(&world).await;
    for app in &apps {
        app.create_user("Анна").await;
        app.log
            .wait_for("Event published", |line| line["user_id"] == 1)
            .await;
        assert!(app.leads().await);
    }
    observer.next_bodies(2).await;
}

#[tokio::test]
async fn an_encoding_that_cannot_hold_every_name_is_refused_by_name() {
    let world = World::empty().await;
    let latin = format!("{}_latin1", world.database());
    world
        .elsewhere(&[&format!(
            "CREATE DATABASE {latin} ENCODING LATIN1 LOCALE 'C' TEMPLATE template0"
        )])
        .await;
    let url = world.database_url.replace(&world.database(), &latin);
    let settings = [
        world.settings(),
        vec![("DATABASE_URL", &*url), ("DATABASE_DIRECT_URL", "")],
    ]
    .concat();
    for arguments in [&["check"][..], &["serve"], &["migrate"]] {
        let settings = [settings.clone(), vec![("PORT", "0")]].concat();
        let output = command(&settings).args(arguments).output().await.unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        let said = [output.stdout, output.stderr].concat();
        assert!(
            String::from_utf8_lossy(&said).contains("LATIN1"),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&said)
        );
    }
}

/// As a killed leader's session does: its server is blocked, and its client is gone.
#[tokio::test]
async fn a_leader_that_dies_waiting_for_a_lock_is_replaced_in_seconds() {
    let world = World::new().await;
    let mut leader = App::start(&world).await;
    until("it leads", async || leader.leads().await).await;
    let second = App::start(&world).await;
    let hold = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN OLD; END $$;
                CREATE TRIGGER hold BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION hold()";
    sqlx::raw_sql(hold).execute(&world.pool).await.unwrap();
    let mut holder = world.pool.acquire().await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(4711)")
        .execute(&mut *holder)
        .await
        .unwrap();
    second.create_user("Анна").await;
    eventually("its deletion waits", async || {
        let waits =
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)";
        world.value::<bool>(waits).await.then_some(())
    })
    .await;
    let began = Instant::now();
    leader.kill().await;
    until("the other leads", async || second.leads().await).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    sqlx::query("SELECT pg_advisory_unlock(4711)")
        .execute(&mut *holder)
        .await
        .unwrap();
    world.until_outbox_is_empty().await;
}
