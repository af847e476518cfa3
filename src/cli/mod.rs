//! The command line: reads the settings, runs the command, turns the outcome into an exit code.

mod after_restore;
mod api_key;
mod check;
mod dlq;
mod error;
mod healthcheck;
mod outbox;
mod report;

use std::collections::HashMap;
use std::error::Error;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::runtime::Runtime;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use self::after_restore::HowFar;
use self::api_key::ApiKeyCommand;
use self::dlq::DlqCommand;
use self::outbox::OutboxCommand;
use self::report::{Format, Report};
use crate::app::App;
use crate::config::{self, Config, ConfigError, Environment};
use crate::database::{Route, schema};
use crate::error_chain::Chain;
use crate::monitoring::catalogue;
use crate::shutdown::{self, StoppedAtOnce};
use crate::{http, telemetry};

/// A REST API over user records in PostgreSQL that publishes every change to RabbitMQ.
///
/// Settings come from the environment and from `.env`; `.env.example` explains each.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API, publish and consume the events (the default)
    Serve,
    /// Bring the database's schema up to date
    Migrate,
    /// Print the OpenAPI document
    Openapi,
    /// Print every setting: its default, its values and what it means
    Settings {
        /// Output format: a `.env` file or a Markdown table
        #[arg(long, default_value = "env")]
        format: SettingsFormat,
    },
    /// Show waiting events; list, retry or drop quarantined ones
    Outbox {
        #[command(flatten)]
        output: Output,
        #[command(subcommand)]
        command: OutboxCommand,
    },
    /// Make, rotate, list and revoke the keys of callers
    ApiKey {
        #[command(flatten)]
        output: Output,
        #[command(subcommand)]
        command: ApiKeyCommand,
    },
    /// After a restored backup or a failover that lost changes: lift versions and ids beyond those
    /// that subscribers have seen
    AfterRestore {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        command: HowFar,
    },
    /// Show, redrive or drop messages that the consumer could not read
    Dlq {
        #[command(flatten)]
        output: Output,
        #[command(subcommand)]
        command: DlqCommand,
    },
    /// Test settings, logins, migrations and permissions, and say what to do about each problem
    Check {
        #[command(flatten)]
        output: Output,
        /// Check only the settings
        #[arg(long)]
        settings: bool,
    },
    /// Exit with 0 if the service that has the same settings is ready
    Healthcheck,
}

#[derive(Args)]
struct Output {
    /// Output format of the report
    #[arg(long, global = true, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum SettingsFormat {
    Env,
    Markdown,
}

/// Exit code for a bad command line or setting.
const BAD_USAGE: u8 = 2;
/// Exit code after a second signal.
const STOPPED_AT_ONCE: u8 = 130;

pub(crate) type AnyError = Box<dyn Error + Send + Sync>;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Runtime::new().map_err(AnyError::from).and_then(|runtime| {
        let outcome = runtime.block_on(run(cli));
        // Do not wait for blocking threads, which may hash passwords or look up host names.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("user-management-api: {}", Chain(&*error));
            ExitCode::from(exit_code(&error))
        }
    }
}

async fn run(cli: Cli) -> Result<(), AnyError> {
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => serve().await,
        Command::Migrate => migrate().await,
        Command::Openapi => openapi(),
        Command::Settings { format } => {
            let text = match format {
                SettingsFormat::Env => config::settings::env_example(),
                SettingsFormat::Markdown => config::settings::table(),
            };
            print!("{text}");
            Ok(())
        }
        Command::Outbox { output, command } => {
            let (database, _log) = config::for_database(settings()?)?;
            print(
                output.format,
                &outbox::run(command, &database.direct_url).await?,
            )
        }
        Command::ApiKey { output, command } => {
            let (database, _log) = config::for_database(settings()?)?;
            print(
                output.format,
                &api_key::run(command, &database.direct_url).await?,
            )
        }
        Command::AfterRestore { output, command } => {
            let (database, _log) = config::for_database(settings()?)?;
            print(
                output.format,
                &after_restore::run(command, &database.direct_url).await?,
            )
        }
        Command::Dlq { output, command } => {
            let broker = config::for_broker(settings()?)?;
            print(output.format, &dlq::run(command, &broker).await?)
        }
        Command::Check { output, settings } => check(output, settings).await,
        Command::Healthcheck => healthcheck::run(config::for_healthcheck(settings()?)?).await,
    }
}

fn exit_code(error: &AnyError) -> u8 {
    if error.is::<ConfigError>() {
        BAD_USAGE
    } else if error.is::<StoppedAtOnce>() {
        STOPPED_AT_ONCE
    } else {
        1
    }
}

/// Reads the environment and `.env`, and prints their warnings to stderr.
fn settings() -> Result<HashMap<String, String>, ConfigError> {
    let Environment { settings, warnings } = config::environment()?;
    for warning in warnings {
        eprintln!("user-management-api: warning: {warning}");
    }
    Ok(settings)
}

async fn serve() -> Result<(), AnyError> {
    let Environment { settings, warnings } = config::environment()?;
    let config = Config::from_settings(settings)?;
    let telemetry = telemetry::init(&config.log.level, config.log.format)?;
    for warning in warnings {
        warn!("{warning}");
    }
    let collected = catalogue::install()?;
    let _upkeep = AbortOnDropHandle::new(tokio::spawn(telemetry.run_upkeep(collected.clone())));
    let stop = shutdown::on_signal()?;
    let allow_anonymous = config.http.contract.allow_anonymous;
    let served = async {
        let app = App::build(config, collected, telemetry.writer()).await?;
        let address = app.local_addr()?;
        let admin_address = app.admin_addr();
        let docs = admin_address.unwrap_or(address);
        info!(
            version = env!("CARGO_PKG_VERSION"),
            %address,
            admin_address = admin_address.map(tracing::field::display),
            docs = %format_args!("http://{docs}/docs"),
            "Listening"
        );
        let is_reachable = |address: SocketAddr| !address.ip().is_loopback();
        if allow_anonymous && (is_reachable(address) || admin_address.is_some_and(is_reachable)) {
            warn!(
                %address,
                "ALLOW_ANONYMOUS=true: anybody who can reach this address can read and change all \
                 users. Restrict access in front of the service, or make API keys"
            );
        }
        Ok(app.run(stop.orderly).await?)
    };
    tokio::select! {
        outcome = served => outcome.inspect_err(|error: &AnyError| error!(
            error = %Chain(&**error),
            "Failed"
        )),
        () = stop.at_once.cancelled() => Err(StoppedAtOnce.into()),
    }
}

async fn migrate() -> Result<(), AnyError> {
    let (database, log) = config::for_database(settings()?)?;
    let _telemetry = telemetry::init(&log.level, log.format)?;
    schema::migrate(&database.direct_url.options()).await?;
    info!("The schema is current");
    Ok(())
}

fn openapi() -> Result<(), AnyError> {
    let contract = config::for_openapi(settings()?)?;
    let document = http::openapi_document(contract)?;
    println!("{document}");
    Ok(())
}

async fn check(output: Output, settings_alone: bool) -> Result<(), AnyError> {
    let Config {
        database,
        broker,
        http,
        ..
    } = Config::from_settings(settings()?)?;
    if settings_alone {
        return Ok(());
    }
    let mut databases = vec![("DATABASE_URL", &database.url, database.route)];
    if database.route == Route::TransactionPooler {
        databases.push(("DATABASE_DIRECT_URL", &database.direct_url, Route::Direct));
    }
    print(
        output.format,
        &check::run(
            &databases,
            database.migrate_on_start,
            http.contract.allow_anonymous,
            &broker,
        )
        .await,
    )
}

fn print(format: Format, report: &Report) -> Result<(), AnyError> {
    print!("{}", report.text(format));
    if report.complete {
        Ok(())
    } else {
        Err("completed only in part".into())
    }
}
