//! Settings: read once from the environment and `.env`, and checked together. The only reader of
//! the environment; each module parses its own URL or directive.

mod env_file;
mod reader;
pub(crate) mod settings;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use listener::Limits;

use self::env_file::EnvFile;
use self::reader::{LOCALHOST, Reader, parse_bool, parse_host, parse_hosts, parse_networks};
use self::settings::{SETTINGS, Setting};
use crate::database::{DatabaseUrl, Route};
use crate::domain::password::PasswordPolicy;
use crate::http::{Contract, HeadRules};
use crate::messaging::broker::{Broker, BrokerUrl};
use crate::messaging::topology::QueueType;
use crate::telemetry::{LogFormat, LogLevel};

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub http: HttpConfig,
    pub database: DatabaseConfig,
    pub broker: Broker,
    /// Longest wait for a password to be hashed.
    pub hash_wait: Duration,
    pub log: LogConfig,
    /// Pause between "not ready" and closing the listener, for load balancers to notice.
    pub shutdown_delay: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct HttpConfig {
    pub address: SocketAddr,
    /// Of the operators' port, if there is one.
    pub admin_address: Option<SocketAddr>,
    /// Time limit for one request, including its body.
    pub request_timeout: Duration,
    /// Time limit for the next bytes of a body.
    pub body_timeout: Duration,
    pub limits: Limits,
    pub head: HeadRules,
    pub contract: Contract,
}

#[derive(Clone, Debug)]
pub(crate) struct DatabaseConfig {
    pub url: DatabaseUrl,
    /// For migrations and the relay's session lock. If it differs from `url`, `url` is assumed to
    /// lead through a transaction pooler.
    pub direct_url: DatabaseUrl,
    /// How `url` reaches the server.
    pub route: Route,
    pub max_connections: u32,
    /// Whether waiting reads, of users by id or of the same page, share queries.
    pub coalesce_reads: bool,
    /// Whether waiting updates share a statement, and likewise waiting deletions.
    pub group_commit: bool,
    pub migrate_on_start: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    pub level: LogLevel,
    pub format: LogFormat,
}

/// Every bad setting, one line each; values that may hold a secret are not repeated.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad settings:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for ConfigError {}

/// A name at least this similar to a setting's, from 0 to 1, counts as misspelt.
const ALIKE: f64 = 0.85;
/// Shortest name to compare: shorter ones resemble too many others.
const SHORTEST_ALIKE: usize = 8;

/// The settings that the process was started with.
pub(crate) struct Environment {
    pub settings: HashMap<String, String>,
    /// Lines of `.env` that were skipped, and names that look like misspelt settings.
    pub warnings: Vec<String>,
}

/// The process's environment; `.env` in the working directory supplies what is unset.
pub(crate) fn environment() -> Result<Environment, ConfigError> {
    // Variables that are not UTF-8 are not settings.
    let variables: HashMap<_, _> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    // Only in the working directory: a parent directory's belongs to another project.
    let file = match fs::read(".env") {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            env_file::parse(&text, |name| variables.get(name).cloned(), is_setting)
                .map_err(ConfigError)?
        }
        Err(error) if error.kind() == ErrorKind::NotFound => EnvFile {
            entries: HashMap::new(),
            warnings: Vec::new(),
        },
        Err(error) if error.kind() == ErrorKind::IsADirectory => {
            return Err(ConfigError(vec![
                ".env: is a directory, not a file".to_owned(),
            ]));
        }
        Err(error) => return Err(ConfigError(vec![format!(".env: {error}")])),
    };
    let EnvFile {
        entries: mut settings,
        mut warnings,
    } = file;
    settings.extend(variables);
    warnings.extend(
        settings
            .keys()
            .filter_map(|name| Some(format!("{name} is not a setting: {} is", meant(name)?))),
    );
    Ok(Environment { settings, warnings })
}

fn is_setting(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name)
}

/// The setting whose misspelt name this seems to be.
fn meant(name: &str) -> Option<&'static str> {
    let alike = |known: &&str| strsim::normalized_damerau_levenshtein(name, known) >= ALIKE;
    let long_enough = |known: &&str| known.len().min(name.len()) >= SHORTEST_ALIKE;
    if is_setting(name) {
        return None;
    }
    let known = SETTINGS.iter().map(|setting| setting.name);
    known.filter(long_enough).find(alike)
}

impl Config {
    /// Parses all settings.
    ///
    /// # Errors
    /// Names every bad setting.
    pub(crate) fn from_settings(settings: HashMap<String, String>) -> Result<Self, ConfigError> {
        read(settings, |reader| {
            let http = reader.http();
            let database = reader.database();
            let broker = reader.broker();
            let hash_wait = reader.milliseconds(&settings::PASSWORD_HASH_WAIT_MS);
            let log = reader.log();
            let shutdown_delay = reader.milliseconds(&settings::SHUTDOWN_DELAY_MS);
            Some(Self {
                http,
                database: database?,
                broker: broker?,
                hash_wait,
                log,
                shutdown_delay,
            })
        })
    }
}

/// The settings of commands that use only PostgreSQL.
pub(crate) fn for_database(
    settings: HashMap<String, String>,
) -> Result<(DatabaseConfig, LogConfig), ConfigError> {
    read(settings, |reader| {
        let database = reader.database();
        let log = reader.log();
        Some((database?, log))
    })
}

/// The settings of commands that use only RabbitMQ.
pub(crate) fn for_broker(settings: HashMap<String, String>) -> Result<Broker, ConfigError> {
    read(settings, Reader::broker)
}

/// The address where `healthcheck` finds the service that has the same settings.
pub(crate) fn for_healthcheck(
    settings: HashMap<String, String>,
) -> Result<SocketAddr, ConfigError> {
    let mut address = read(settings, |reader| Some(reader.http().address))?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    Ok(address)
}

/// The settings of `openapi`.
pub(crate) fn for_openapi(settings: HashMap<String, String>) -> Result<Contract, ConfigError> {
    read(settings, |reader| Some(reader.contract()))
}

fn read<T>(
    settings: HashMap<String, String>,
    parts: impl FnOnce(&mut Reader) -> Option<T>,
) -> Result<T, ConfigError> {
    let mut reader = Reader {
        settings,
        faults: Vec::new(),
    };
    match parts(&mut reader) {
        Some(parts) if reader.faults.is_empty() => Ok(parts),
        _ => Err(ConfigError(reader.faults)),
    }
}

impl Reader {
    fn http(&mut self) -> HttpConfig {
        let host = self.host(&settings::HOST);
        let port = self.number(&settings::PORT);
        let admin_port = self.optional_number(&settings::ADMIN_PORT);
        if admin_port.is_some_and(|admin| admin == port && admin != 0) {
            self.faults
                .push("ADMIN_PORT: must be another port than PORT".to_owned());
        }
        let admin_host = self.host(&settings::ADMIN_HOST);
        let admin_address = admin_port.map(|port| SocketAddr::new(admin_host, port));
        let contract = self.contract();
        let request_timeout = self.milliseconds(&settings::REQUEST_TIMEOUT_MS);
        let trusted_proxies = self
            .optional(&settings::TRUSTED_PROXIES, parse_networks)
            .unwrap_or_default();
        let body_timeout = self.milliseconds(&settings::BODY_READ_TIMEOUT_MS);
        let limits = Limits {
            header_read: self.milliseconds(&settings::HEADER_READ_TIMEOUT_MS),
            keep_alive: self.milliseconds(&settings::KEEP_ALIVE_TIMEOUT_MS),
            write: self.milliseconds(&settings::WRITE_TIMEOUT_MS),
            max_connections: self.number(&settings::MAX_CONNECTIONS),
            max_per_address: self.optional_number(&settings::MAX_CONNECTIONS_PER_ADDRESS),
            shared_addresses: trusted_proxies.clone(),
        };
        let head = HeadRules {
            // Where no credential is needed, an unexpected host name may be a web page's whose DNS
            // was rebound to this address.
            allowed_hosts: self
                .optional(&settings::ALLOWED_HOSTS, parse_hosts)
                .unwrap_or(contract.allow_anonymous.then(Vec::new)),
            trusted_proxies,
        };
        HttpConfig {
            address: SocketAddr::new(host, port),
            admin_address,
            request_timeout,
            body_timeout,
            limits,
            head,
            contract,
        }
    }

    fn host(&mut self, setting: &Setting) -> IpAddr {
        self.optional(setting, parse_host).unwrap_or(LOCALHOST)
    }

    /// By default, only where no other machine can reach the service.
    fn allow_anonymous(&mut self) -> bool {
        let has_admin_port = self.given(&settings::ADMIN_PORT).is_some();
        let others_reach_it = !self.host(&settings::HOST).is_loopback()
            || (has_admin_port && !self.host(&settings::ADMIN_HOST).is_loopback())
            || self.given(&settings::ALLOWED_HOSTS).is_some()
            || self.given(&settings::TRUSTED_PROXIES).is_some();
        self.optional(&settings::ALLOW_ANONYMOUS, parse_bool)
            .unwrap_or(!others_reach_it)
    }

    fn database(&mut self) -> Option<DatabaseConfig> {
        let url = self.required(&settings::DATABASE_URL, DatabaseUrl::from_str);
        let direct_url = self.optional(&settings::DATABASE_DIRECT_URL, DatabaseUrl::from_str);
        let max_connections = self.number(&settings::DATABASE_MAX_CONNECTIONS);
        let coalesce_reads = self.flag(&settings::COALESCE_READS);
        let group_commit = self.flag(&settings::GROUP_COMMIT);
        let migrate_on_start = self.flag(&settings::MIGRATE_ON_START);
        let url = url?;
        let is_pooled = direct_url.is_some()
            && self.given(&settings::DATABASE_DIRECT_URL) != self.given(&settings::DATABASE_URL);
        Some(DatabaseConfig {
            direct_url: direct_url.unwrap_or_else(|| url.clone()),
            url,
            route: if is_pooled {
                Route::TransactionPooler
            } else {
                Route::Direct
            },
            max_connections,
            coalesce_reads,
            group_commit,
            migrate_on_start,
        })
    }

    fn broker(&mut self) -> Option<Broker> {
        let url = self.required(&settings::RABBITMQ_URL, BrokerUrl::from_str);
        let queue_type = self
            .optional(&settings::AMQP_QUEUE_TYPE, QueueType::from_str)
            .unwrap_or_default();
        Some(Broker {
            url: url?,
            queue_type,
        })
    }

    fn contract(&mut self) -> Contract {
        let min_chars = self.number(&settings::PASSWORD_MIN_LENGTH);
        Contract {
            password_policy: PasswordPolicy { min_chars },
            allow_anonymous: self.allow_anonymous(),
            require_if_match: self.flag(&settings::REQUIRE_IF_MATCH),
        }
    }

    fn log(&mut self) -> LogConfig {
        LogConfig {
            level: self
                .optional(&settings::LOG_LEVEL, LogLevel::from_str)
                .unwrap_or_default(),
            format: self
                .optional(&settings::LOG_FORMAT, LogFormat::from_str)
                .unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
