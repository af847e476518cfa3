//! PostgreSQL is restarted, away, slowed down by an old snapshot, or has a plan for an empty table.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use reqwest::StatusCode;
use sqlx::Connection;
use tokio::time::{Instant, interval, sleep};

use crate::chaos::trial::Trial;
use harness::{App, Control, Proxy, Readers, World, command, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_postgresql_restart_fails_requests_in_flight_for_a_second() {
    let trial = Trial::start(1).await;
    let load = trial.load(200);
    // INT is PostgreSQL's fast shutdown, QUIT the immediate one.
    for signal in ["INT", "QUIT", "INT", "QUIT"] {
        sleep(Duration::from_secs(2)).await;
        trial.control.signal("postgres", signal).await;
        trial.control.start("postgres").await;
        let began = Instant::now();
        let accepted = load.tally.accepted();
        until("writes that succeed", async || {
            load.tally.accepted() > accepted + 20
        })
        .await;
        let over = began.elapsed();
        until("a leader", async || trial.replica().leads().await).await;
        eprintln!(
            "  {signal}: writes succeed after {over:?}, events flow after {:?}",
            began.elapsed()
        );
        assert!(over <= Duration::from_secs(1), "{over:?}");
    }
    eprintln!(
        "  {} writes refused, {} unanswered",
        load.tally.refused.load(Relaxed),
        load.tally.unanswered.load(Relaxed)
    );
    assert_eq!(
        load.tally.unanswered.load(Relaxed),
        0,
        "every request is answered"
    );
    trial.finish(load).await;
}

/// PostgreSQL ends all sessions and recovers, without a new start time.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postgresql_session_is_over_in_seconds_without_loss() {
    let trial = Trial::start(1).await;
    let load = trial.load(300);
    for whose in ["leader", "requests"] {
        sleep(Duration::from_secs(2)).await;
        let query = format!(
            "SELECT pid FROM pg_stat_activity AS session
             WHERE datname = current_database() AND application_name = 'user-management-api'
                   AND EXISTS (SELECT FROM pg_locks
                               WHERE pg_locks.pid = session.pid AND locktype = 'advisory') = {}
             LIMIT 1",
            whose == "leader"
        );
        let pid: i32 = sqlx::query_scalar(sqlx::AssertSqlSafe(query))
            .fetch_one(&trial.world.pool)
            .await
            .unwrap();
        let mut witness = sqlx::PgConnection::connect(&trial.world.database_url)
            .await
            .unwrap();
        let killed = std::process::Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status()
            .unwrap();
        assert!(killed.success(), "{pid}");
        // It ends all sessions, and syncs its whole folder before it takes new ones.
        sqlx::query("SELECT pg_sleep(60)")
            .execute(&mut witness)
            .await
            .expect_err("all sessions end");
        until("PostgreSQL", async || {
            sqlx::PgConnection::connect(&trial.world.database_url)
                .await
                .is_ok()
        })
        .await;
        let began = Instant::now();
        let accepted = load.tally.accepted();
        until("writes that succeed", async || {
            load.tally.accepted() > accepted + 100
        })
        .await;
        until("a leader", async || trial.replica().leads().await).await;
        eprintln!("  {whose}: events flow after {:?}", began.elapsed());
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
    }
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_restart_with_256_readers_is_503_in_3_s_and_heals() {
    let trial = Trial::start(1).await;
    let readers = Readers::start(&trial.replica().address, "/users/1").await;
    for signal in ["INT", "QUIT", "INT", "QUIT"] {
        trial.control.signal("postgres", signal).await;
        readers.until_refused().await;
        trial.control.start("postgres").await;
        let began = Instant::now();
        readers.until_answered().await;
        eprintln!("  {signal}: 256 reads succeed after {:?}", began.elapsed());
        readers.until_healed().await;
    }
    let slowest = readers.stop().await;
    eprintln!("  the slowest answer took {slowest:?}");
    assert!(slowest <= Duration::from_secs(3), "{slowest:?}");
}

/// The setup of an operator who does not know about `DATABASE_DIRECT_URL`.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_pooler_blocks_leading_and_check_names_the_setting() {
    let control = Control::of_shared_servers();
    for line in ["", "ignore_startup_parameters = options"] {
        let world = World::new().await;
        let mut url = reqwest::Url::parse(&control.pooler(line).await).unwrap();
        url.set_path(reqwest::Url::parse(&world.database_url).unwrap().path());
        let pooled = [("DATABASE_URL", url.as_str()), ("DATABASE_DIRECT_URL", "")];
        let settings = [&world.settings()[..], &pooled].concat();
        let checked = command(&settings).arg("check").output().await.unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        assert!(
            !checked.status.success() && said.contains("DATABASE_DIRECT_URL"),
            "{line}: {said}"
        );
        let apps = [
            App::start(&world).with(&pooled).launch().await,
            App::start(&world).with(&pooled).launch().await,
        ];
        for app in &apps {
            until("the log names the setting", async || {
                app.log.text().contains("Set DATABASE_DIRECT_URL")
            })
            .await;
            assert!(!app.leads().await);
        }
        let direct = [
            ("DATABASE_URL", url.as_str()),
            ("DATABASE_DIRECT_URL", world.database_url.as_str()),
        ];
        let app = App::start(&world).with(&direct).await;
        app.create_user("Анна").await;
        app.log.wait_for("Event published", |_| true).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_down_for_60_s_is_503_within_3_s_and_survived() {
    let trial = Trial::start(1).await;
    let load = trial.load(100);
    sleep(Duration::from_secs(2)).await;
    trial.control.signal("postgres", "INT").await;
    let began = Instant::now();
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://{}{path}", trial.replica().address);
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_mins(1) {
        let asked = Instant::now();
        let answer = client
            .put(url("/users/1"))
            .json(&serde_json::json!({"name": "Яна"}))
            .send()
            .await
            .unwrap();
        slowest = slowest.max(asked.elapsed());
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"));
        assert_eq!(
            client
                .get(url("/health/live"))
                .send()
                .await
                .unwrap()
                .status(),
            StatusCode::OK
        );
        let ready = client.get(url("/health/ready")).send().await.unwrap();
        assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
        sleep(Duration::from_millis(500)).await;
    }
    eprintln!("  the slowest 503 took {slowest:?}");
    assert!(slowest <= Duration::from_secs(3), "{slowest:?}");
    trial.control.start("postgres").await;
    until("ready", async || trial.replica().is("ready").await).await;
    let accepted = load.tally.accepted();
    until("writes that succeed", async || {
        load.tally.accepted() > accepted + 100
    })
    .await;
    trial.finish(load).await;
}

/// Inserts rows like the service's own, more than requests could in the time.
pub async fn insert_events(world: &World, count: u32) {
    let insert = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                  SELECT gen_random_uuid(), 'user.updated', 1000000 + nextval('by_hand') % 100000, nextval('by_hand'),
                         'by-hand', now(), '{\"name\": \"Имя\", \"surname\": \"Фамилия\"}'
                  FROM generate_series(1, $1)";
    sqlx::query(insert)
        .bind(i64::from(count))
        .execute(&world.pool)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_old_snapshot_does_not_slow_reads_of_the_outbox() {
    let trial = Trial::start(1).await;
    sqlx::raw_sql("CREATE SEQUENCE by_hand")
        .execute(&trial.world.pool)
        .await
        .unwrap();
    let mut holder = trial.world.pool.begin().await.unwrap();
    let hold = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox";
    sqlx::raw_sql(hold).execute(&mut *holder).await.unwrap();
    let began = Instant::now();
    let mut tick = interval(Duration::from_millis(100));
    while began.elapsed() < Duration::from_secs(75) {
        tick.tick().await;
        insert_events(&trial.world, 400).await;
    }
    let metrics = trial.replica().metrics().await;
    let bucket = |bound: &str| {
        let name = format!("outbox_read_seconds_bucket{{le=\"{bound}\"}} ");
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
            .unwrap()
    };
    let all = bucket("+Inf");
    let quick = bucket("0.05");
    let pending = trial.pending().await;
    let share = quick / all * 100.0;
    eprintln!("  {all} reads, {share:.2} % of them under 50 ms; {pending} of 300,000 events wait");
    assert!(share >= 99.0, "{share:.2} %");
    assert!(
        pending < 8_000,
        "{pending} wait: the relay does not keep up"
    );
    holder.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_300000_is_drained_at_5000_a_second() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.broker_url).await;
    let by_proxy = proxy.url(&world.broker_url);
    let trial = Trial::start_with(world, 1, &[("RABBITMQ_URL", &by_proxy)]).await;
    for statement in ["CREATE SEQUENCE by_hand", "VACUUM ANALYZE outbox"] {
        sqlx::raw_sql(statement)
            .execute(&trial.world.pool)
            .await
            .unwrap();
    }
    proxy.close();
    until("degraded", async || trial.replica().is("degraded").await).await;
    insert_events(&trial.world, 300_000).await;
    proxy.open();
    until("a leader", async || trial.replica().leads().await).await;
    let left = trial.pending().await;
    let began = Instant::now();
    while !trial.world.outbox_is_empty().await {
        assert!(
            began.elapsed() < Duration::from_secs(100),
            "{} left",
            trial.pending().await
        );
        sleep(Duration::from_millis(100)).await;
    }
    let rate = left as f64 / began.elapsed().as_secs_f64();
    eprintln!("  {left} events drained at {rate:.0} a second");
    assert!(rate >= 5_000.0, "{rate:.0} a second");
}
