//! `api-key`: make, rotate, list and revoke the keys of callers.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::error::CommandError;
use super::report::Report;
use crate::access::token::Token;
use crate::database::{DatabaseUrl, connect, schema};
use crate::domain::actor::KeyName;
use crate::domain::scope::Scope;
use crate::repository::api_keys::{self, MadeKey};

#[derive(Subcommand)]
pub(crate) enum ApiKeyCommand {
    /// Make a key and print its token, which is not stored and cannot be shown again
    ///
    /// The token goes to standard output. Put it straight into the secret store of who calls the
    /// service, which sends it as `Authorization: Bearer TOKEN`. It works at once on every replica.
    Create(New),
    /// Make another token for a key, with the same scopes and lifetime, and let the old one expire
    ///
    /// The new token works at once. Change callers to it while both work.
    Rotate(Rotation),
    /// The keys, without their tokens
    List,
    /// Delete a key, all its tokens included: they stop within 5 seconds
    Revoke { name: KeyName },
}

#[derive(Args)]
pub(crate) struct New {
    /// The name in logs and events, as `key:NAME`
    name: KeyName,
    /// users:read, users:write (which includes users:read), passwords:verify or metrics:read
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<Scope>,
    /// Such as 90d; without it, the key does not expire
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires_in: Option<Duration>,
}

#[derive(Args)]
pub(crate) struct Rotation {
    name: KeyName,
    /// How long the old token works; 0s stops it within 5 seconds
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = whole_seconds)]
    keep_old: Duration,
}

/// Longest time that can be asked for: a hundred years.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

fn whole_seconds(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.subsec_nanos() == 0 && time <= LONGEST {
        Ok(time)
    } else {
        Err("must be whole seconds, at most 36500d".to_owned())
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let time = whole_seconds(text)?;
    if time.is_zero() {
        Err("must be at least 1s".to_owned())
    } else {
        Ok(time)
    }
}

/// A key, and its token for once.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    key: MadeKey,
    token: &'a str,
}

pub(crate) async fn run(
    command: ApiKeyCommand,
    database: &DatabaseUrl,
) -> Result<Report, CommandError> {
    let mut connection = connect(&database.options()).await?;
    if !schema::is_current(&mut connection).await? {
        return Err(CommandError::Migrations);
    }
    match command {
        ApiKeyCommand::Create(New {
            name,
            scopes,
            expires_in,
        }) => {
            let token = Token::generate();
            let mut scopes: Vec<_> = scopes
                .into_iter()
                .map(|scope| scope.as_str().to_owned())
                .collect();
            scopes.sort_unstable();
            scopes.dedup();
            let digest = token.digest();
            let made = api_keys::create(
                &mut connection,
                name.as_str(),
                &scopes,
                digest.as_bytes(),
                expires_in,
            );
            let key = made.await?.ok_or(CommandError::KeyExists)?;
            Ok(shown(key, &token))
        }
        ApiKeyCommand::Rotate(Rotation { name, keep_old }) => {
            let token = Token::generate();
            let digest = token.digest();
            let made =
                api_keys::rotate(&mut connection, name.as_str(), digest.as_bytes(), keep_old);
            let key = made.await?.ok_or(CommandError::NoSuchKey)?;
            Ok(shown(key, &token))
        }
        ApiKeyCommand::List => {
            let keys = api_keys::list(&mut connection).await?;
            Ok(Report::new(
                &json!({"count": keys.len(), "keys": keys}),
                true,
            ))
        }
        ApiKeyCommand::Revoke { name } => {
            match api_keys::revoke(&mut connection, name.as_str()).await? {
                0 => Err(CommandError::NoSuchKey),
                deleted => Ok(Report::new(&json!({"deleted": deleted}), true)),
            }
        }
    }
}

fn shown(key: MadeKey, token: &Token) -> Report {
    let token = token.expose();
    Report::line(token, &Shown { key, token })
}
