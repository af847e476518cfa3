//! The database's URL.

use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::server_url;

/// Where the database is and how to log in; `Debug` does not show the password.
#[derive(Clone)]
pub struct DatabaseUrl(PgConnectOptions);

impl DatabaseUrl {
    pub fn options(&self) -> PgConnectOptions {
        self.0.clone()
    }
}

/// The libpq parameters that sqlx supports, sqlx's own aliases, and `ssl`, which the driver of the
/// original Python service uses for `sslmode`.
const PARAMETERS: [&str; 19] = [
    "sslmode",
    "ssl",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
    "statement-cache-capacity",
    "ssl-mode",
    "ssl-root-cert",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
];
const SSL_MODES: [&str; 6] = [
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
];

impl FromStr for DatabaseUrl {
    type Err = String;

    /// Also accepts `postgresql+driver://`, as libraries in other languages write it. The error
    /// does not repeat the URL, because it holds a password.
    fn from_str(raw: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "must be a URL such as postgresql://user:password@host:5432/database";
        let (scheme, rest) = raw.split_once("://").ok_or(EXPECTED)?;
        let scheme = scheme
            .split_once('+')
            .map_or(scheme, |(scheme, _driver)| scheme);
        if !matches!(scheme, "postgresql" | "postgres") {
            return Err(EXPECTED.to_owned());
        }
        let mut url = server_url::parse(&format!("{scheme}://{rest}"), EXPECTED)?;
        server_url::require_known(&url, &PARAMETERS)?;
        let parameters: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        if !parameters.is_empty() {
            let mut query = url.query_pairs_mut();
            query.clear();
            for (name, value) in &parameters {
                let name = if name == "ssl" { "sslmode" } else { name };
                if matches!(name, "sslmode" | "ssl-mode")
                    && !SSL_MODES.contains(&&*value.to_ascii_lowercase())
                {
                    return Err(format!("`{name}` must be one of {}", SSL_MODES.join(", ")));
                }
                query.append_pair(name, value);
            }
        }
        let mut options = PgConnectOptions::from_str(url.as_str())
            .map_err(|_details_may_hold_the_password| EXPECTED)?
            // A pooler refuses start-up parameters that it does not know.
            .extra_float_digits(None);
        // An IPv6 literal must lose its brackets, or it would be resolved as a host name.
        if let Some(address) = options
            .get_host()
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            options = options.clone().host(address);
        }
        if options.get_application_name().is_none() {
            options = options.application_name(env!("CARGO_PKG_NAME"));
        }
        Ok(Self(options.disable_statement_logging()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}/{}",
            self.0.get_host(),
            self.0.get_port(),
            self.0.get_database().unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgSslMode;

    use super::DatabaseUrl;

    #[test]
    fn driver_suffixes_of_other_languages_are_accepted() {
        for url in [
            "postgres://u:p@h/d",
            "postgresql://u:p@h/d",
            "postgresql+asyncpg://u:p@h:5432/d",
        ] {
            assert_eq!(
                format!("{:?}", url.parse::<DatabaseUrl>().unwrap()),
                "h:5432/d",
                "{url}"
            );
        }
    }

    #[test]
    fn tls_parameters_are_spelt_as_in_the_original_driver() {
        let mode = |query: &str| {
            format!("postgresql+asyncpg://u:p@h/d?{query}")
                .parse::<DatabaseUrl>()
                .map(|url| url.options().get_ssl_mode())
        };
        assert!(matches!(
            mode("ssl=verify-full").unwrap(),
            PgSslMode::VerifyFull
        ));
        assert!(matches!(mode("ssl=require").unwrap(), PgSslMode::Require));
        assert!(mode("ssl=yes").unwrap_err().contains("verify-full"));
        for unknown in [
            "SSLMODE=require",
            "target_session_attrs=read-write",
            "channel_binding=require",
        ] {
            let message = mode(unknown).unwrap_err();
            assert!(
                message.contains(unknown.split('=').next().unwrap()),
                "{message}"
            );
        }
    }

    #[test]
    fn addresses_are_interpreted_as_libpq_does() {
        let host = |url: &str| {
            let options = url.parse::<DatabaseUrl>().unwrap().options();
            let socket = options.get_socket().map(|path| path.display().to_string());
            (options.get_host().to_owned(), options.get_port(), socket)
        };
        assert_eq!(
            host("postgresql://u:p@[::1]/d"),
            ("::1".to_owned(), 5432, None)
        );
        assert_eq!(
            host("postgresql://u:p@[::1]:5433/d"),
            ("::1".to_owned(), 5433, None)
        );
        assert_eq!(
            host("postgresql://u:p@/d?host=/run/postgresql")
                .2
                .as_deref(),
            Some("/run/postgresql")
        );
        assert!(
            "postgresql://u:p@h1:1,h2:2/d"
                .parse::<DatabaseUrl>()
                .unwrap_err()
                .contains("one name")
        );
    }

    #[test]
    fn a_malformed_database_url_is_refused_without_being_repeated() {
        for url in [
            "",
            "secret",
            "mysql://u:secret@h/d",
            "postgresql://u:secret@h:port/d",
        ] {
            assert!(
                !url.parse::<DatabaseUrl>().unwrap_err().contains("secret"),
                "{url}"
            );
        }
    }
}
