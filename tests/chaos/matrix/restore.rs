//! Restores backups with the exact commands of the guide and checks that subscribers agree again.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use harness::{App, Control, Copy, Observer, World, command, until};

const GUIDE: &str = include_str!("../../../docs/operations.md");

/// The block of commands in the guide that starts with `beginning`.
fn block(beginning: &str) -> &'static str {
    let start = GUIDE
        .find(&format!("```bash\n{beginning}"))
        .unwrap_or_else(|| panic!("no {beginning}"))
        + 8;
    GUIDE[start..].split("```").next().unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = harness::scratch().join(format!("{name}-{}", uuid::Uuid::new_v4().simple()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

struct Service<'a> {
    world: &'a World,
    observer: Observer,
    copy: Copy,
}

impl<'a> Service<'a> {
    async fn of(world: &'a World) -> Self {
        Self {
            world,
            observer: Observer::new(world).await,
            copy: Copy::default(),
        }
    }

    async fn start(&self, url: &str) -> App {
        App::start(self.world)
            .with(&[("DATABASE_URL", url), ("DATABASE_DIRECT_URL", url)])
            .await
    }

    async fn hear(&mut self, events: usize) {
        for event in self.observer.next_bodies(events).await {
            self.copy.apply(&event);
        }
    }

    /// What the backup holds.
    async fn before_the_backup(&mut self, app: &App) {
        for name in ["Анна", "Яна", "Иван"] {
            app.create_user(name).await;
        }
        assert_eq!(
            app.put("/users/1", &json!({"name": "Аня"})).await.status,
            200
        );
        self.hear(4).await;
    }

    /// What is lost.
    async fn after_the_backup(&mut self, app: &App) {
        for name in ["А", "Б", "В"] {
            assert_eq!(
                app.put("/users/1", &json!({ "name": name })).await.status,
                200
            );
        }
        assert_eq!(app.delete("/users/2").await.status, 204);
        assert_eq!(app.create_user("Олег").await, 4);
        self.hear(5).await;
    }

    async fn after_the_restore(&mut self, control: &Control, url: &str) {
        control
            .run_commands(
                block("user-management-api after-restore"),
                &folder("restore"),
                url,
            )
            .await;
        let app = self.start(url).await;
        self.hear(3).await;
        let list = app.get("/users").await.body;
        assert_eq!(
            (&list[0]["name"], list.as_array().unwrap().len()),
            (&json!("Аня"), 3)
        );
        self.copy.compare(&list);
        self.copy.assert_is(&list);
        assert!(app.create_user("Вера").await > 1_000_000);
        assert_eq!(
            app.put("/users/2", &json!({"name": "Ян"})).await.status,
            200
        );
        assert_eq!(app.delete("/users/3").await.status, 204);
        self.hear(3).await;
        let list = app.get("/users").await;
        assert_eq!(list.header("x-total-count"), "3");
        self.copy.assert_is(&list.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_agree_again_after_a_restore_from_any_dump_kind() {
    let control = Control::of_shared_servers();
    for (dump, restore) in [
        ("pg_dump --format=custom", "pg_restore"),
        ("pg_dump --file", "psql"),
        ("pg_dump --data-only", "user-management-api migrate\npsql"),
    ] {
        eprintln!("  {dump}");
        let world = World::new().await;
        let folder = folder("dump");
        let mut service = Service::of(&world).await;
        let mut app = service.start(&world.database_url).await;
        service.before_the_backup(&app).await;
        control
            .run_commands(block(dump), &folder, &world.database_url)
            .await;
        service.after_the_backup(&app).await;
        world.until_outbox_is_empty().await;
        app.stop().await;
        let restored = World::empty().await;
        control
            .run_commands(block(restore), &folder, &restored.database_url)
            .await;
        service
            .after_the_restore(&control, &restored.database_url)
            .await;
        fs::remove_dir_all(folder).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_agree_again_after_a_point_in_time_recovery() {
    let control = Control::of_shared_servers();
    let world = World::new().await;
    let folder = folder("base");
    let mut service = Service::of(&world).await;
    let mut app = service.start(&world.database_url).await;
    control
        .run_commands(block("pg_basebackup"), &folder, &world.database_url)
        .await;
    service.before_the_backup(&app).await;
    world.until_outbox_is_empty().await;
    let time: String = world.value("SELECT clock_timestamp()::text").await;
    service.after_the_backup(&app).await;
    world.until_outbox_is_empty().await;
    app.stop().await;
    // The running server's own log serves as the archive.
    sqlx::query("SELECT pg_switch_wal()")
        .execute(&world.pool)
        .await
        .unwrap();
    let recover = block("touch base/recovery.signal")
        .replace(
            "/var/lib/wal-archive",
            control.data().join("pg_wal").to_str().unwrap(),
        )
        .replace("2026-11-30 09:00:00+00", &time);
    control
        .run_commands(&recover, &folder, &world.database_url)
        .await;
    let (recovered, port) = control.adopt(&folder.join("base")).await;
    let mut url = reqwest::Url::parse(&world.database_url).unwrap();
    url.set_port(Some(port)).unwrap();
    until("it takes writes", async || {
        let Ok(mut connection) = PgConnection::connect(url.as_str()).await else {
            return false;
        };
        connection
            .execute(AssertSqlSafe("CREATE TABLE probe ()"))
            .await
            .is_ok()
    })
    .await;
    // It knows that it is not what it was.
    let settings = [
        ("DATABASE_URL", url.as_str()),
        ("DATABASE_DIRECT_URL", ""),
        ("RABBITMQ_URL", &world.broker_url),
    ];
    assert!(
        command(&settings)
            .arg("check")
            .output()
            .await
            .unwrap()
            .status
            .success()
    );
    service.after_the_restore(&control, url.as_str()).await;
    recovered.signal("postgres", "INT").await;
}
