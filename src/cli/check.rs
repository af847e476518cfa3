//! `check`: tests whether the service can run with these settings. Each finding says what to do.

use std::error::Error;

use serde::Serialize;

use super::report::Report;
use crate::database::preflight::{self, Preflight, Schema, Sequences};
use crate::database::schema::UTF8;
use crate::database::{DatabaseError, DatabaseUrl, Route, keeps_settings, run_once, sqlstate};
use crate::domain::event::EventType;
use crate::error_chain::Chain;
use crate::messaging::broker::{self, Broker};
use crate::messaging::preflight::{self as broker_preflight, Refused};
use crate::messaging::session::SessionError;
use crate::messaging::topology;
use crate::repository::api_keys;

/// PostgreSQL versions that the tests run on.
const VERSIONS: std::ops::RangeInclusive<i32> = 15..=18;

#[derive(Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    check: &'static str,
    result: Outcome,
    found: String,
    to_do: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Ok,
    Warning,
    Failed,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            result: Outcome::Ok,
            found: found.into(),
            to_do: None,
        }
    }

    fn failed(check: &'static str, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self {
            check,
            result: Outcome::Failed,
            found: found.into(),
            to_do: Some(to_do.into()),
        }
    }
}

/// Checks each address of PostgreSQL, and RabbitMQ. Changes nothing in PostgreSQL; declares the
/// exchanges and queues in RabbitMQ, as the service does at its start.
pub(crate) async fn run(
    databases: &[(&'static str, &DatabaseUrl, Route)],
    migrate_on_start: bool,
    allow_anonymous: bool,
    broker: &Broker,
) -> Report {
    let mut findings = vec![Finding::ok(
        "settings",
        "read from the environment and ./.env",
    )];
    for (setting, url, route) in databases {
        check_database(setting, url, *route, migrate_on_start, &mut findings).await;
    }
    if let Some((_, url, route)) = databases.first() {
        findings.extend(access(url, *route, allow_anonymous).await);
    }
    check_broker(broker, &mut findings).await;
    let complete = findings
        .iter()
        .all(|finding| finding.result != Outcome::Failed);
    Report::new(&Findings { findings }, complete)
}

async fn check_database(
    setting: &'static str,
    url: &DatabaseUrl,
    route: Route,
    migrate_on_start: bool,
    findings: &mut Vec<Finding>,
) {
    let options = url.options();
    let preflight = match run_once(&options, route, |connection| {
        Box::pin(preflight::inspect(connection))
    })
    .await
    {
        Ok(preflight) => preflight,
        Err(error) => return findings.push(no_database(setting, url, &error)),
    };
    let user = options.get_username();
    findings.push(server(setting, url, user, &preflight));
    if route == Route::Direct && matches!(keeps_settings(&options).await, Ok(false)) {
        findings.push(Finding::failed(
            "sessions",
            format!(
                "a pooler in between shares them, so requests fail and no replica may publish \
                 events: {url:?}"
            ),
            format!(
                "set DATABASE_DIRECT_URL to PostgreSQL itself; {setting} may lead through the \
                 pooler"
            ),
        ));
    }
    findings.push(schema(user, &preflight.schema, migrate_on_start));
    findings.extend(
        preflight
            .sequences
            .map(|sequences| self::sequences(user, &sequences)),
    );
}

/// Nothing where the keys cannot be counted: another finding says why.
async fn access(url: &DatabaseUrl, route: Route, allow_anonymous: bool) -> Option<Finding> {
    let options = url.options();
    let live = run_once(&options, route, |connection| {
        Box::pin(api_keys::count_live(connection))
    });
    let live = live.await.ok()?;
    let keys = match live {
        0 => "no API key works".to_owned(),
        1 => "1 API key works".to_owned(),
        live => format!("{live} API keys work"),
    };
    Some(if allow_anonymous {
        let found = format!("{keys}, and callers without one may read and change users");
        Finding::ok("access", found)
    } else if live == 0 {
        Finding {
            result: Outcome::Warning,
            ..Finding::failed(
                "access",
                format!("{keys}, so nobody gets in"),
                "user-management-api api-key create NAME --scope users:write",
            )
        }
    } else {
        Finding::ok("access", format!("{keys}, and nobody gets in without one"))
    })
}

fn sequences(user: &str, found: &Sequences) -> Finding {
    if found.ids_are_taken {
        Finding::failed(
            "sequences",
            "that of the users' ids is behind the ids that are taken",
            "SELECT setval(pg_get_serial_sequence('users', 'id'), (SELECT max(id) FROM users))",
        )
    } else if found.outbox_cache != 1 {
        Finding::failed(
            "sequences",
            format!(
                "that of the outbox has a cache of {}, which puts events out of order",
                found.outbox_cache
            ),
            "ALTER TABLE outbox ALTER seq SET CACHE 1",
        )
    } else if !found.may_be_lifted {
        let to_do =
            format!("GRANT SELECT, UPDATE ON SEQUENCE users_id_seq, outbox_seq_seq TO {user}");
        let found = format!("{user} may not lift them where a restore leaves them behind");
        Finding {
            result: Outcome::Warning,
            ..Finding::failed("sequences", found, to_do)
        }
    } else {
        Finding::ok("sequences", "as they should be")
    }
}

fn server(setting: &str, url: &DatabaseUrl, user: &str, preflight: &Preflight) -> Finding {
    let major = preflight.version / 10_000;
    let minor = preflight.version % 10_000;
    let found = format!("PostgreSQL {major}.{minor} at {url:?}, logged in as {user}");
    if preflight.is_standby {
        Finding::failed(
            "database",
            format!("{found}: a standby, which takes no writes"),
            format!("point {setting} to the primary"),
        )
    } else if preflight.is_read_only {
        Finding::failed(
            "database",
            format!("{found}: set to read-only"),
            format!("ALTER DATABASE or ALTER ROLE {user} … RESET default_transaction_read_only"),
        )
    } else if preflight.encoding != UTF8 {
        Finding::failed(
            "database",
            format!(
                "{found}: its encoding is {}, which cannot hold every name",
                preflight.encoding
            ),
            format!(
                "create a database with ENCODING 'UTF8' TEMPLATE template0, and name it in \
                 {setting}"
            ),
        )
    } else if VERSIONS.contains(&major) {
        Finding::ok("database", found)
    } else {
        let least = VERSIONS.start();
        let most = VERSIONS.end();
        let to_do = format!("the service is tested with PostgreSQL {least} to {most}");
        Finding {
            result: Outcome::Warning,
            ..Finding::failed("database", found, to_do)
        }
    }
}

fn schema(user: &str, schema: &Schema, migrate_on_start: bool) -> Finding {
    let grant = "or use the login that owns the tables";
    match schema {
        Schema::Ready => Finding::ok("migrations", "all applied"),
        Schema::Pending if migrate_on_start => {
            Finding::ok("migrations", "to be applied at the start")
        }
        Schema::Pending => {
            Finding::failed("migrations", "pending", "run `user-management-api migrate`")
        }
        Schema::PendingAndNotAllowed => Finding::failed(
            "migrations",
            format!("pending, and {user} may not create tables"),
            format!("GRANT CREATE, USAGE ON SCHEMA public TO {user}; {grant}"),
        ),
        Schema::NotGranted(missing) => Finding::failed(
            "migrations",
            format!("{user} may not do all that the service does"),
            format!(
                "GRANT {} TO {user}; {grant}",
                missing.join(&format!(" TO {user}; GRANT "))
            ),
        ),
        Schema::Foreign => Finding::failed(
            "migrations",
            "there is a table `users` that this service did not make",
            "use a database of its own for the service (CREATE DATABASE …), or rename that table",
        ),
    }
}

fn no_database(setting: &str, url: &DatabaseUrl, error: &DatabaseError) -> Finding {
    let options = url.options();
    let user = options.get_username();
    let database = options.get_database().unwrap_or(options.get_username());
    let driver = match error {
        DatabaseError::Unavailable(error)
        | DatabaseError::Pooled(error)
        | DatabaseError::ReadOnly(error)
        | DatabaseError::NotMigrated(error)
        | DatabaseError::IdTaken(error)
        | DatabaseError::Statement(error) => Some(&**error),
        DatabaseError::Timeout | DatabaseError::Overloaded => None,
    };
    let state = driver.and_then(sqlstate::of);
    let to_do = match (state.as_deref(), driver) {
        (Some(sqlstate::INVALID_PASSWORD | sqlstate::INVALID_AUTHORIZATION), _) => format!(
            "correct user and password in {setting}; if this is not the server that you meant, its \
             host and port; without DATABASE_URL and RABBITMQ_URL, ./setup.sh starts servers of its \
             own"
        ),
        (Some(sqlstate::INVALID_CATALOG_NAME), _) => {
            format!("create it (CREATE DATABASE \"{database}\"), or name another in {setting}")
        }
        (Some(sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE), _) => {
            format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS true")
        }
        (Some(sqlstate::INSUFFICIENT_PRIVILEGE), _) => {
            format!("GRANT CONNECT ON DATABASE \"{database}\" TO {user}")
        }
        (Some(sqlstate::TOO_MANY_CONNECTIONS), _) => "wait, or raise max_connections".to_owned(),
        (
            Some(
                sqlstate::PROTOCOL_VIOLATION
                | sqlstate::DUPLICATE_STATEMENT
                | sqlstate::INVALID_STATEMENT_NAME,
            ),
            _,
        ) => {
            "if a pooler such as pgbouncer is there: set DATABASE_DIRECT_URL to PostgreSQL itself, \
             beside it"
                .to_owned()
        }
        _ if blames_a_certificate(error)
            || is_file_missing(error, options.get_socket().is_some()) =>
        {
            format!(
                "name the authority that signed the server's certificate by ?sslrootcert=FILE in \
                 {setting}, and the host as the certificate does; where the server asks for a \
                 client's certificate, add sslcert= and sslkey="
            )
        }
        (_, Some(sqlx::Error::Io(_)) | None) => {
            format!("start PostgreSQL there, or correct host and port in {setting}")
        }
        _ => format!("see the message, and correct {setting}"),
    };
    Finding::failed(
        "database",
        format!("{url:?} as {user}: {}", Chain(error)),
        to_do,
    )
}

/// Whether a file that the URL names is missing. A missing socket does not count.
fn is_file_missing(error: &DatabaseError, is_by_socket: bool) -> bool {
    !is_by_socket && Chain(error).to_string().contains("No such file")
}

/// Whether a certificate is to blame. rustls says what is wrong with one only in words.
fn blames_a_certificate(error: &(dyn Error + 'static)) -> bool {
    let text = Chain(error).to_string().to_ascii_lowercase();
    ["certificate", "fatal alert"]
        .iter()
        .any(|word| text.contains(word))
}

async fn check_broker(broker: &Broker, findings: &mut Vec<Finding>) {
    let url = &broker.url;
    let connection = match broker.connect("check").await {
        Ok(connection) => connection,
        Err(error) => {
            let to_do = if error.is_refused() {
                "correct user, password and virtual host in RABBITMQ_URL; if this is not the server \
                 that you meant, its host and port; without DATABASE_URL and RABBITMQ_URL, \
                 ./setup.sh starts servers of its own"
            } else if blames_a_certificate(&error) || matches!(error, SessionError::File { .. }) {
                "name the authority that signed the broker's certificate by ?cacertfile=FILE in \
                 RABBITMQ_URL, and the host as the certificate does; where the broker asks for a \
                 client's certificate, add certfile= and keyfile="
            } else {
                "start RabbitMQ there, or correct host and port in RABBITMQ_URL; the service starts \
                 without it and connects once it is there"
            };
            return findings.push(Finding::failed(
                "broker",
                format!("{url:?}: {}", Chain(&error)),
                to_do,
            ));
        }
    };
    findings.push(Finding::ok(
        "broker",
        format!("RabbitMQ at {url:?}, logged in as {}", url.user()),
    ));
    if url.is_plain_to_another_machine() {
        let to_do = "use amqps://, or keep the network between the two to yourself";
        let found = "the login and all events go to another machine in plain text";
        findings.push(Finding {
            result: Outcome::Warning,
            ..Finding::failed("encryption", found, to_do)
        });
    }
    let keys = [EventType::Created, EventType::Updated, EventType::Deleted].map(EventType::as_str);
    findings.push(
        match broker_preflight::permissions(broker, &connection, &keys).await {
            Ok(refused) if refused.is_empty() => {
                Finding::ok("permissions", "may do all that the service does")
            }
            Ok(refused) => {
                let found: Vec<_> = refused.iter().map(ToString::to_string).collect();
                Finding::failed(
                    "permissions",
                    found.join("; "),
                    permissions_to_grant(broker, &refused),
                )
            }
            Err(error) => {
                let to_do =
                    "see the message; AMQP_QUEUE_TYPE=classic is for brokers without quorum queues";
                Finding::failed("permissions", Chain(&error).to_string(), to_do)
            }
        },
    );
    broker::close(connection).await;
}

/// A command for each kind of permission that is missing. Each replaces all permissions of its
/// kind.
fn permissions_to_grant(broker: &Broker, refused: &[Refused]) -> String {
    let vhost = broker.url.vhost();
    let user = broker.url.user();
    let ours = topology::EXCHANGE;
    let mut commands = Vec::new();
    if refused
        .iter()
        .any(|refused| matches!(refused, Refused::Topic(_)))
    {
        commands.push(format!(
            "rabbitmqctl set_topic_permissions -p {vhost} {user} {ours} '^user\\.' '.*', or \
             clear_topic_permissions"
        ));
    }
    if refused
        .iter()
        .any(|refused| !matches!(refused, Refused::Topic(_)))
    {
        // `dlq redrive` publishes to the default exchange.
        commands.push(format!(
            "rabbitmqctl set_permissions -p {vhost} {user} '^{ours}' '^({ours}|amq\\.default$)' \
             '^{ours}'; where operations declare the exchanges and queues, the first may be '^$'"
        ));
    }
    commands.join("; ")
}
