//! While the database has a fault, 256 readers get responses in time; after it, only successes.

use std::time::Duration;

use sqlx::Connection;

use harness::{App, Proxy, Readers, World};

const IN_TIME: Duration = Duration::from_secs(3);

/// A service whose database is behind a proxy, with one user and its readers.
async fn read_by_many(world: &World) -> (Proxy, App, Readers) {
    let proxy = Proxy::before(&world.database_url).await;
    let settings = [
        ("DATABASE_URL", proxy.url(&world.database_url)),
        ("LOG_LEVEL", "INFO".to_owned()),
    ];
    let app = App::start(world)
        .with(
            &settings
                .each_ref()
                .map(|(name, value)| (*name, value.as_str())),
        )
        .await;
    let path = format!("/users/{}", app.create_user("Анна").await);
    let readers = Readers::start(&app.address, &path).await;
    (proxy, app, readers)
}

#[tokio::test]
async fn a_silent_network_under_256_readers_is_503_in_time_and_heals() {
    let world = World::new().await;
    let (proxy, _app, readers) = read_by_many(&world).await;
    proxy.silence();
    readers.until_refused().await;
    proxy.open();
    readers.until_healed().await;
    let slowest = readers.stop().await;
    assert!(slowest < IN_TIME, "{slowest:?}");
}

#[tokio::test]
async fn a_locked_table_under_256_readers_is_503_in_time_and_heals() {
    let world = World::new().await;
    let (_proxy, _app, readers) = read_by_many(&world).await;
    let mut holder = sqlx::PgConnection::connect(&world.database_url)
        .await
        .unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    readers.until_refused().await;
    lock.rollback().await.unwrap();
    readers.until_healed().await;
    let slowest = readers.stop().await;
    assert!(slowest < IN_TIME, "{slowest:?}");
}

#[tokio::test]
async fn a_database_lost_under_256_readers_is_503_in_time_and_heals() {
    let world = World::new().await;
    let (proxy, _app, readers) = read_by_many(&world).await;
    for reset in [false, true] {
        if reset {
            proxy.reset();
        } else {
            proxy.close();
        }
        readers.until_refused().await;
        proxy.open();
        readers.until_healed().await;
    }
    let slowest = readers.stop().await;
    assert!(slowest < IN_TIME, "{slowest:?}");
}
