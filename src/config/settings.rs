//! Every setting: its name, default, values and meaning. `.env.example` and the table in
//! `docs/operations.md` are rendered from here.

use std::fmt::Write;

use crate::domain::password::PASSWORD_MAX_BYTES;

/// One setting.
pub(crate) struct Setting {
    pub name: &'static str,
    pub default: DefaultValue,
    pub values: Values,
    /// Lines of at most 96 characters, in Markdown.
    pub doc: &'static str,
}

/// What applies if a setting is absent or empty.
pub(crate) enum DefaultValue {
    /// None: the service does not start without a value. Holds an example.
    Required(&'static str),
    /// This value.
    Is(&'static str),
    /// No single value: a description of what applies.
    Other(&'static str),
}

pub(crate) enum Values {
    /// Least and greatest value.
    Number(u64, u64),
    /// Least value; the greatest is ten minutes.
    Milliseconds(u64),
    Flag,
    /// A description of their form.
    Text(&'static str),
}

const TEN_MINUTES: u64 = 600_000;

impl Setting {
    /// Least and greatest number.
    pub(crate) const fn range(&self) -> (u64, u64) {
        match self.values {
            Values::Number(least, most) => (least, most),
            Values::Milliseconds(least) => (least, TEN_MINUTES),
            Values::Flag | Values::Text(_) => (0, 0),
        }
    }

    fn described_values(&self) -> String {
        let (least, most) = self.range();
        match self.values {
            Values::Number(..) => format!("{least} to {most}"),
            Values::Milliseconds(_) => format!("{least} to {most} ms"),
            Values::Flag => "`true`, `false`".to_owned(),
            Values::Text(form) => form.to_owned(),
        }
    }
}

/// Defines the settings, and the list of all of them.
macro_rules! settings {
    ($($name:ident = $default:expr, $values:expr, $doc:literal;)*) => {
        $(pub(crate) const $name: Setting = Setting {
            name: stringify!($name),
            default: $default,
            values: $values,
            doc: $doc,
        };)*

        /// Every setting, in the order of the documentation.
        pub(crate) static SETTINGS: &[Setting] = &[$($name),*];
    };
}

use DefaultValue::{Is, Other, Required};
use Values::{Flag, Milliseconds, Number, Text};

settings! {
    DATABASE_URL = Required("postgresql+asyncpg://postgres:postgres@localhost:5432/userdb"),
        Text("a URL"),
        "PostgreSQL 15 to 18. The driver suffix of other languages, such as `+asyncpg`, is ignored.\n\
         Add `?sslmode=require`, `verify-full` or, for plain text, `disable`. The default, `prefer`,\n\
         encrypts where the server can, and warns where one on another machine cannot.\n\
         `ssl=` means the same; `sslrootcert=`, `sslcert=` and `sslkey=` name files.";
    RABBITMQ_URL = Required("amqp://guest:guest@localhost:5672/"),
        Text("a URL"),
        "RabbitMQ 3.10 or later. It may be away at the start and at any time.\n\
         `amqps://` for TLS, with `cacertfile=`, `certfile=` and `keyfile=`.";
    LOG_LEVEL = Is("INFO"),
        Text("`ERROR`, `WARN`, `INFO`, `DEBUG`, `TRACE`, or tracing directives such as `info,lapin=debug`"),
        "What is logged. Successful requests of `/health` and `/metrics` are logged at DEBUG:\n\
         `info,probes=debug` shows them.";
    LOG_FORMAT = Is("json"),
        Text("`json`, `pretty`"),
        "One JSON object a line, or lines for people.";
    HOST = Is("127.0.0.1"),
        Text("an IP address or `localhost`"),
        "Address to listen on.";
    PORT = Is("8000"), Number(0, 65_535),
        "0 takes a free port, which the log names.";
    ADMIN_PORT = Other("none"), Number(0, 65_535),
        "A second port, for operators: it serves everything, and `/metrics` without a key. `PORT` then\n\
         keeps `/users`, `/health` and `/docs/errors`.";
    ADMIN_HOST = Is("127.0.0.1"),
        Text("an IP address or `localhost`"),
        "Address of the operators' port.";
    ALLOW_ANONYMOUS = Other("`true` if `HOST` (and `ADMIN_HOST`, with an `ADMIN_PORT`) is loopback and neither `ALLOWED_HOSTS` nor `TRUSTED_PROXIES` is set, else `false`"),
        Flag,
        "Whether callers without an API key may read and change users, and read `/metrics`.";
    ALLOWED_HOSTS = Other("none; any where `ALLOW_ANONYMOUS` is `false`"),
        Text("host names without ports, separated by commas, or `*` for any"),
        "Names that requests may give in `Host`, besides IP addresses and `localhost`. Others are\n\
         answered 421: a web page could send them (DNS rebinding).";
    TRUSTED_PROXIES = Other("none"),
        Text("addresses or networks, separated by commas"),
        "Proxies whose `X-Forwarded-For` is believed: it is then the `client_address` in the log, and\n\
         the client of every limit for one client.";
    REQUIRE_IF_MATCH = Is("false"), Flag,
        "Whether PUT, PATCH and DELETE need `If-Match`; without it they are answered 428.";
    REQUEST_TIMEOUT_MS = Is("10000"), Milliseconds(1),
        "For one request, its body included; then 504.";
    HEADER_READ_TIMEOUT_MS = Is("10000"), Milliseconds(1),
        "For the head of a request, from its first byte (for a connection's first request, from the\n\
         connect); then the connection is closed.";
    KEEP_ALIVE_TIMEOUT_MS = Is("75000"), Milliseconds(1),
        "For a connection without a request; then it is closed.";
    BODY_READ_TIMEOUT_MS = Is("5000"), Milliseconds(1),
        "For more bytes of a body; then 408.";
    WRITE_TIMEOUT_MS = Is("30000"), Milliseconds(1),
        "For a client to read more of its answer; then the connection is closed.";
    MAX_CONNECTIONS = Is("16384"), Number(1, 1_000_000),
        "Connections open at once, or fewer where the limit of open files (`ulimit -n`) is lower.\n\
         Beyond it, those that have waited longest for their client (for a request, its head or its\n\
         body) are closed; when all are busy, new ones are.";
    MAX_CONNECTIONS_PER_ADDRESS = Other("half of all"), Number(1, 1_000_000),
        "Of these, for one client's address (for IPv6, its /64). `TRUSTED_PROXIES` may use all.";
    SHUTDOWN_DELAY_MS = Is("0"), Milliseconds(0),
        "Between \"not ready\" and closing the listener, for load balancers to notice.";
    DATABASE_MAX_CONNECTIONS = Is("10"), Number(1, 1_000),
        "Connections that requests share. In addition, probe, metrics and relay have one each,\n\
         coalesced reads two, and grouped writes two.";
    COALESCE_READS = Is("true"), Flag,
        "Whether waiting reads of users by id share one query. If false, each is a query of its own.";
    GROUP_COMMIT = Is("true"), Flag,
        "Whether waiting updates share one statement, and likewise waiting deletions. If false, each is\n\
         a statement of its own.";
    DATABASE_DIRECT_URL = Other("`DATABASE_URL`"),
        Text("a URL"),
        "For migrations and the relay's session lock, where `DATABASE_URL` leads through a transaction\n\
         pooler such as pgbouncer: each use case is then one transaction.";
    MIGRATE_ON_START = Is("true"), Flag,
        "Whether to apply the migrations at the start. If false, the service waits until\n\
         `user-management-api migrate` has.";
    AMQP_QUEUE_TYPE = Is("quorum"),
        Text("`quorum`, `classic`"),
        "`quorum`: on disk, and replicated in a cluster. `classic`: for brokers without quorum queues.";
    PASSWORD_MIN_LENGTH = Is("8"), Number(1, PASSWORD_MAX_BYTES as u64),
        "Shortest password, in characters. The longest is 1,024 bytes.";
    PASSWORD_HASH_WAIT_MS = Is("2000"), Milliseconds(1),
        "Longest wait for a core to hash a password on; then 503 `overloaded`. Clients take turns, and\n\
         256 requests of one client and 1,024 in all may wait.";
}

/// The text of `.env.example`.
pub(crate) fn env_example() -> String {
    let mut text = String::from(
        "# cp .env.example .env\n\
         # The environment wins over this file. A bad setting stops the start with exit code 2; the error\n\
         # names every bad one. `user-management-api check` tests whether the service can run with these.\n\
         #\n\
         # Without DATABASE_URL and RABBITMQ_URL, ./setup.sh starts servers of its own; with them it uses\n\
         # these and starts none. The service needs both.\n",
    );
    for setting in SETTINGS {
        let value = match setting.default {
            Required(value) | Is(value) => value,
            Other(_) => "",
        };
        text.push('\n');
        for line in setting.doc.lines() {
            _ = writeln!(text, "# {line}");
        }
        _ = writeln!(text, "# Values: {}", setting.described_values());
        _ = writeln!(text, "#{}={value}", setting.name);
    }
    text
}

/// The table of `docs/operations.md`.
pub(crate) fn table() -> String {
    let mut text = String::from("| name | default | values | |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let default = match setting.default {
            Required(_) => "required".to_owned(),
            Is(value) => format!("`{value}`"),
            Other(instead) => instead.to_owned(),
        };
        let values = setting.described_values();
        let doc = setting.doc.replace('\n', " ");
        _ = writeln!(
            text,
            "| `{}` | {default} | {values} | {doc} |",
            setting.name
        );
    }
    text
}
