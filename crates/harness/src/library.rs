//! The repository layer, used without HTTP, because a client cannot control when a batch begins or
//! what is in it.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;
use user_management_api::testing::{Database, DatabaseUrl, Route, TimeLimits, UserId};

use super::World;

/// Several threads, so that lanes and callers run in parallel.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap()
}

/// A connection pool like the service's.
pub fn database(world: &World, route: Route) -> Database {
    let url: DatabaseUrl = world.database_url.parse().unwrap();
    Database::new(url.options(), 4, route, TimeLimits::REQUESTS)
}

pub fn key(user: usize) -> i64 {
    user.try_into().unwrap()
}

pub fn id(user: usize) -> UserId {
    UserId::new(key(user)).unwrap()
}

/// Adds users named `0`. In an empty table, their ids are 1 to `users`.
pub async fn add_users(world: &World, users: usize) {
    let insert = "INSERT INTO users (name, surname, password)
                  SELECT '0', 'Тестов', '$argon2id$' FROM generate_series(1, $1)";
    sqlx::query(insert)
        .bind(key(users))
        .execute(&world.pool)
        .await
        .unwrap();
}

/// Checks a property for `cases` random values. A failure shows the smallest value found.
pub fn check<T: std::fmt::Debug>(
    cases: u32,
    strategy: &impl Strategy<Value = T>,
    property: impl Fn(T),
) {
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(strategy, |value| {
        property(value);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
