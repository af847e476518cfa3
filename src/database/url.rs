//! The database's URL.

use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// Where the database is and how to log in; `Debug` does not show the password.
#[derive(Clone)]
pub struct DatabaseUrl(PgConnectOptions);

impl DatabaseUrl {
    pub fn options(&self) -> PgConnectOptions {
        self.0.clone()
    }
}

impl FromStr for DatabaseUrl {
    type Err = &'static str;

    /// Also accepts `postgresql+driver://`, as libraries in other languages write it. The error does not repeat the URL, because it
    /// holds a password.
    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "must be a URL such as postgresql://user:password@host:5432/database";
        let (scheme, rest) = raw.split_once("://").ok_or(EXPECTED)?;
        let scheme = scheme.split_once('+').map_or(scheme, |(scheme, _driver)| scheme);
        if !matches!(scheme, "postgresql" | "postgres") {
            return Err(EXPECTED);
        }
        let options = PgConnectOptions::from_str(&format!("{scheme}://{rest}"))
            .map_err(|_details_may_hold_the_password| EXPECTED)?
            // A pooler refuses start-up parameters that it does not know.
            .extra_float_digits(None);
        Ok(Self(options.application_name(env!("CARGO_PKG_NAME")).disable_statement_logging()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.0.get_host(), self.0.get_port(), self.0.get_database().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::DatabaseUrl;

    #[test]
    fn other_languages_driver_suffixes_are_taken() {
        for url in ["postgres://u:p@h/d", "postgresql://u:p@h/d", "postgresql+asyncpg://u:p@h:5432/d"] {
            assert_eq!(format!("{:?}", url.parse::<DatabaseUrl>().unwrap()), "h:5432/d", "{url}");
        }
    }

    #[test]
    fn what_is_no_database_url_is_refused_without_being_repeated() {
        for url in ["", "secret", "mysql://u:secret@h/d", "postgresql://u:secret@h:port/d"] {
            assert!(!url.parse::<DatabaseUrl>().unwrap_err().contains("secret"), "{url}");
        }
    }
}
