//! One PostgreSQL and one RabbitMQ for all tests, and a database and a virtual host for each test.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex};

use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::{Connection, Executor, FromRow, PgConnection, PgPool};
use user_management_api::testing::MIGRATOR;
use uuid::Uuid;

use super::process::ROOT;
use super::until;

struct Servers {
    database: String,
    broker: String,
    management: String,
    /// A transaction pooler in front of `database`, if the service is tested behind one.
    pooler: Option<String>,
    /// They stay when the tests end, so each world is removed with its test.
    is_lasting: bool,
}

/// `quorum`, unless `AMQP_QUEUE_TYPE` says otherwise.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests' own settings are none of the service's"
)]
pub static QUEUE_TYPE: LazyLock<String> = LazyLock::new(|| {
    env::var("AMQP_QUEUE_TYPE")
        .ok()
        .filter(|kind| !kind.is_empty())
        .unwrap_or("quorum".to_owned())
});

/// Settings of the service that the tests' environment may change.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests' own settings are none of the service's"
)]
static PASSED_ON: LazyLock<[(&str, String); 2]> = LazyLock::new(|| {
    ["COALESCE_READS", "GROUP_COMMIT"].map(|name| (name, env::var(name).unwrap_or_default()))
});

/// The servers named by the environment, or a throw-away pair that `setup.sh` keeps until this
/// process ends.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests' own settings are none of the service's"
)]
static SERVERS: LazyLock<Servers> = LazyLock::new(|| {
    let from_environment = || {
        Some(Servers {
            database: env::var("TEST_DATABASE_URL").ok()?,
            broker: env::var("TEST_RABBITMQ_URL").ok()?,
            management: env::var("TEST_RABBITMQ_MANAGEMENT_URL").ok()?,
            pooler: env::var("TEST_POOLER_URL").ok(),
            is_lasting: env::var("TEST_SERVERS").is_err(),
        })
    };
    from_environment().unwrap_or_else(start_servers)
});

fn start_servers() -> Servers {
    let mut setup = Command::new("./setup.sh")
        .arg("test-servers")
        .current_dir(ROOT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("./setup.sh test-servers starts PostgreSQL and RabbitMQ for the tests");
    let mut settings = std::collections::HashMap::new();
    let mut ready = false;
    for line in BufReader::new(setup.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "ready" {
            ready = true;
            break;
        }
        if let Some((name, value)) = line.split_once('=') {
            settings.insert(name.to_owned(), value.to_owned());
        }
    }
    assert!(
        ready,
        "PostgreSQL and RabbitMQ for the tests could not be had: do what ./setup.sh says above, or \
         set TEST_DATABASE_URL, TEST_RABBITMQ_URL and TEST_RABBITMQ_MANAGEMENT_URL to servers for \
         tests alone"
    );
    // The servers stop when their standard input closes, at the end of this process.
    std::mem::forget(setup);
    let mut take = |name: &str| {
        settings
            .remove(name)
            .unwrap_or_else(|| panic!("setup.sh did not print {name}"))
    };
    Servers {
        database: take("TEST_DATABASE_URL"),
        broker: take("TEST_RABBITMQ_URL"),
        management: take("TEST_RABBITMQ_MANAGEMENT_URL"),
        pooler: None,
        is_lasting: false,
    }
}

/// A database with the schema applied, copied for each test.
#[derive(Default)]
struct Template {
    name: Option<String>,
    /// Worlds copied from it that still exist.
    copies: usize,
}

static TEMPLATE: Mutex<Template> = Mutex::new(Template {
    name: None,
    copies: 0,
});
/// Held by who makes the template.
static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The name of the template, for one more copy.
async fn template() -> String {
    let _making = MAKING.lock().await;
    let made = TEMPLATE.lock().unwrap().name.clone();
    let name = match made {
        Some(name) => name,
        None => make_template().await,
    };
    let mut template = TEMPLATE.lock().unwrap();
    template.name = Some(name.clone());
    template.copies += 1;
    name
}

async fn make_template() -> String {
    let name = create_database(None).await;
    let mut connection = PgConnection::connect(&database_url(&SERVERS.database, &name))
        .await
        .unwrap();
    MIGRATOR
        .run_direct(None, &mut connection, false)
        .await
        .unwrap();
    connection.close().await.unwrap();
    name
}

/// Removes the virtual host of a world, its database and those whose names begin with its name, and
/// the template with the last of its copies.
async fn remove(database: String, virtual_host: String, template: Option<String>) {
    let path = format!("/api/vhosts/{virtual_host}");
    management(reqwest::Method::DELETE, &path).await;
    let mut admin = PgConnection::connect(&SERVERS.database).await.unwrap();
    let names = "SELECT datname FROM pg_database WHERE starts_with(datname, $1) OR datname = $2";
    let names: Vec<String> = sqlx::query_scalar(names)
        .bind(database)
        .bind(template)
        .fetch_all(&mut admin)
        .await
        .unwrap();
    for name in names {
        let drop = format!("DROP DATABASE {name} WITH (FORCE)");
        admin.execute(sqlx::AssertSqlSafe(drop)).await.unwrap();
    }
    admin.close().await.unwrap();
}

async fn create_database(template: Option<&str>) -> String {
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut admin = PgConnection::connect(&SERVERS.database)
        .await
        .expect("PostgreSQL at TEST_DATABASE_URL answers");
    let clause = template
        .map(|template| format!(" TEMPLATE {template}"))
        .unwrap_or_default();
    admin
        .execute(sqlx::AssertSqlSafe(format!(
            "CREATE DATABASE {name}{clause}"
        )))
        .await
        .unwrap();
    admin.close().await.unwrap();
    name
}

fn database_url(server: &str, name: &str) -> String {
    let mut url = url::Url::parse(server).unwrap();
    url.set_path(name);
    url.to_string()
}

/// A private database and virtual host.
pub struct World {
    /// Directly to the server, not through a pooler.
    pub database_url: String,
    pooler_url: Option<String>,
    pub broker_url: String,
    pub virtual_host: String,
    pub pool: PgPool,
    /// Made from the template, not empty.
    is_copy: bool,
}

impl World {
    /// With the schema applied.
    pub async fn new() -> Self {
        let template = template().await;
        Self::on(create_database(Some(&template)).await, true).await
    }

    /// With an empty database.
    pub async fn empty() -> Self {
        Self::on(create_database(None).await, false).await
    }

    async fn on(database: String, is_copy: bool) -> Self {
        let virtual_host = format!("test-{}", Uuid::new_v4().simple());
        management(reqwest::Method::PUT, &format!("/api/vhosts/{virtual_host}")).await;
        let mut broker = url::Url::parse(&SERVERS.broker).unwrap();
        broker.set_path(&virtual_host);
        let pooler_url = SERVERS
            .pooler
            .as_ref()
            .map(|pooler| database_url(pooler, &database));
        let database_url = database_url(&SERVERS.database, &database);
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect_lazy(&database_url)
            .unwrap();
        Self {
            database_url,
            pooler_url,
            broker_url: broker.to_string(),
            virtual_host,
            pool,
            is_copy,
        }
    }

    /// The setting with the direct URL of PostgreSQL.
    pub fn direct_setting(&self) -> &'static str {
        if self.pooler_url.is_some() {
            "DATABASE_DIRECT_URL"
        } else {
            "DATABASE_URL"
        }
    }

    /// Settings for a service without a pooler: a pooler's own sessions would survive what a test
    /// does to the service's sessions.
    pub fn without_pooler(&self) -> [(&str, &str); 2] {
        ["DATABASE_URL", "DATABASE_DIRECT_URL"].map(|name| (name, self.database_url.as_str()))
    }

    /// The service's settings for this world.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        let mut settings = vec![
            ("RABBITMQ_URL", self.broker_url.as_str()),
            ("AMQP_QUEUE_TYPE", &QUEUE_TYPE),
        ];
        settings.extend(
            PASSED_ON
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        match &self.pooler_url {
            Some(pooler) => {
                settings.extend([
                    ("DATABASE_URL", pooler.as_str()),
                    ("DATABASE_DIRECT_URL", &self.database_url),
                ]);
            }
            None => settings.push(("DATABASE_URL", &self.database_url)),
        }
        settings
    }

    /// Forbids the service to publish deletions, so that each closes the channel. Returns the path
    /// of the permission, for deletion.
    pub async fn forbid_deletions(&self) -> String {
        let permissions = format!("/api/topic-permissions/{}/guest", self.virtual_host);
        let all_but = serde_json::json!({"exchange": "user_events", "write": "^user\\.(created|updated)$", "read": ".*"});
        management_put(&permissions, &all_but).await;
        permissions
    }

    /// The name of the database.
    pub fn database(&self) -> String {
        url::Url::parse(&self.database_url).unwrap().path()[1..].to_owned()
    }

    /// Runs statements on the same server, in another database.
    pub async fn elsewhere(&self, statements: &[&str]) {
        let mut connection = PgConnection::connect(&database_url(&self.database_url, "postgres"))
            .await
            .unwrap();
        for statement in statements {
            connection
                .execute(sqlx::AssertSqlSafe(*statement))
                .await
                .unwrap();
        }
        connection.close().await.unwrap();
    }

    /// The result of a query for one value.
    pub async fn value<T: Send + Unpin>(&self, query: &'static str) -> T
    where
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_scalar(query)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// Terminates the service's sessions, except those through a pooler.
    pub async fn terminate_connections(&self) {
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name = 'user-management-api'";
        sqlx::query(terminate).execute(&self.pool).await.unwrap();
    }

    /// Terminates the session that holds the leader's lock.
    pub async fn terminate_leader(&self) {
        let terminate =
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
                         WHERE locktype = 'advisory' AND datname = current_database()";
        sqlx::query(terminate).execute(&self.pool).await.unwrap();
    }

    /// Whether the outbox is empty.
    pub async fn outbox_is_empty(&self) -> bool {
        self.value("SELECT NOT EXISTS (SELECT FROM outbox)").await
    }

    pub async fn until_outbox_is_empty(&self) {
        until("an empty outbox", async || self.outbox_is_empty().await).await;
    }
}

impl World {
    /// The template, if this is its last copy.
    fn forget_copy(&self) -> Option<String> {
        let mut template = TEMPLATE.lock().unwrap();
        template.copies -= usize::from(self.is_copy);
        let is_last = self.is_copy && template.copies == 0;
        is_last.then(|| template.name.take()).flatten()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !SERVERS.is_lasting {
            return;
        }
        let template = self.forget_copy();
        let removed = remove(self.database(), self.virtual_host.clone(), template);
        // A runtime of its own, because a drop cannot wait in the test's.
        let thread = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(removed);
        });
        assert!(
            thread.join().is_ok() || std::thread::panicking(),
            "the test's database and virtual host could not be removed"
        );
    }
}

/// A server's URL for another login.
pub fn as_login(url: &str, user: &str, password: &str) -> String {
    let mut url = url::Url::parse(url).unwrap();
    url.set_username(user).unwrap();
    url.set_password(Some(password)).unwrap();
    url.into()
}

/// The management API of another node than the shared one, with the same login.
pub fn management_at(port: u16, path: &str) -> url::Url {
    let mut url = url::Url::parse(&SERVERS.management)
        .unwrap()
        .join(path)
        .unwrap();
    url.set_port(Some(port)).unwrap();
    url
}

/// A call of RabbitMQ's management API.
pub async fn management(method: reqwest::Method, path: &str) -> reqwest::Response {
    call_management(method, path, &serde_json::json!({})).await
}

pub async fn management_put(path: &str, body: &serde_json::Value) {
    call_management(reqwest::Method::PUT, path, body).await;
}

pub async fn management_post(path: &str, body: &serde_json::Value) -> reqwest::Response {
    call_management(reqwest::Method::POST, path, body).await
}

async fn call_management(
    method: reqwest::Method,
    path: &str,
    body: &serde_json::Value,
) -> reqwest::Response {
    let url = url::Url::parse(&SERVERS.management)
        .unwrap()
        .join(path)
        .unwrap();
    let request = reqwest::Client::new().request(method, url).json(body);
    request
        .send()
        .await
        .expect("RabbitMQ's management API answers")
        .error_for_status()
        .unwrap()
}

pub async fn management_json(path: &str) -> serde_json::Value {
    management(reqwest::Method::GET, path)
        .await
        .json()
        .await
        .unwrap()
}
