//! Settings, good and bad.

use std::collections::HashMap;

use super::settings::{self, DefaultValue, SETTINGS};
use super::{Config, ConfigError, meant};
use crate::database::Route;
use crate::domain::password::PasswordPolicy;
use crate::http::{DEFAULT_BODY_TIMEOUT, DEFAULT_REQUEST_TIMEOUT};

const ORIGINAL: [(&str, &str); 3] = [
    (
        "DATABASE_URL",
        "postgresql+asyncpg://postgres:postgres@localhost:5432/userdb",
    ),
    ("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/"),
    ("LOG_LEVEL", "INFO"),
];

fn read(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let settings = ORIGINAL
        .iter()
        .chain(changes)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::from_settings(settings.collect::<HashMap<_, _>>())
}

#[test]
fn the_original_services_env_works_unchanged() {
    let config = read(&[]).unwrap();
    assert_eq!(config.http.address.to_string(), "127.0.0.1:8000");
}

#[test]
fn every_bad_setting_is_named_together_without_its_secrets() {
    let error = read(&[
        ("DATABASE_URL", "mysql://u:hunter22@h/d"),
        ("RABBITMQ_URL", "http://u:hunter22@h"),
        ("PORT", "eighty"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("MIGRATE_ON_START", "maybe"),
        ("AMQP_QUEUE_TYPE", "stream"),
        ("PASSWORD_MIN_LENGTH", "0"),
        ("HOST", "example.com"),
        ("ALLOWED_HOSTS", "api.example:443"),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("MAX_CONNECTIONS", "0"),
    ])
    .unwrap_err()
    .to_string();
    for name in [
        "DATABASE_URL",
        "RABBITMQ_URL",
        "PORT",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "MIGRATE_ON_START",
        "AMQP_QUEUE_TYPE",
        "PASSWORD_MIN_LENGTH",
        "HOST",
        "ALLOWED_HOSTS",
        "TRUSTED_PROXIES",
        "MAX_CONNECTIONS",
    ] {
        assert!(
            error.contains(&format!("\n  {name}: ")),
            "{name} is missing in {error}"
        );
    }
    assert!(!error.contains("hunter22"), "{error}");
}

#[test]
fn a_direct_url_to_another_address_means_a_pooler() {
    const POOLER: &str = "postgresql://postgres:postgres@localhost:6432/userdb";
    assert_eq!(read(&[]).unwrap().database.route, Route::Direct);
    let original = ORIGINAL[0].1;
    assert_eq!(
        read(&[("DATABASE_DIRECT_URL", original)])
            .unwrap()
            .database
            .route,
        Route::Direct
    );
    let pooled = read(&[("DATABASE_URL", POOLER), ("DATABASE_DIRECT_URL", original)])
        .unwrap()
        .database;
    assert_eq!(pooled.route, Route::TransactionPooler);
    assert_eq!(
        format!("{:?} {:?}", pooled.url, pooled.direct_url),
        "localhost:6432/userdb localhost:5432/userdb"
    );
}

#[test]
fn required_settings_that_are_missing_or_empty_are_named() {
    let error = Config::from_settings(HashMap::from([("DATABASE_URL".to_owned(), " ".to_owned())]))
        .unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
}

#[test]
fn a_url_in_the_wrong_setting_is_not_repeated() {
    let names = [
        "PORT",
        "HOST",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "AMQP_QUEUE_TYPE",
        "MIGRATE_ON_START",
        "TRUSTED_PROXIES",
    ];
    let error = read(&names.map(|name| (name, "amqp://u:hunter22@h")))
        .unwrap_err()
        .to_string();
    for name in names {
        assert!(error.contains(name), "{name}: {error}");
    }
    assert!(!error.contains("hunter22"), "{error}");
}

#[test]
fn debug_output_masks_secrets() {
    let config = read(&[
        ("DATABASE_URL", "postgresql://u:hunter22@h/d"),
        ("RABBITMQ_URL", "amqp://u:hunter22@h/%2f"),
    ]);
    assert!(!format!("{config:?}").contains("hunter22"));
}

#[test]
fn only_host_names_that_are_configured_are_allowed() {
    let allowed = |settings: &[(&str, &str)]| read(settings).unwrap().http.head.allowed_hosts;
    let elsewhere = [("HOST", "0.0.0.0"), ("ALLOW_ANONYMOUS", "true")];
    assert_eq!(allowed(&[]), Some(Vec::new()));
    assert_eq!(allowed(&elsewhere), Some(Vec::new()));
    assert_eq!(allowed(&[("ALLOWED_HOSTS", "*")]), None);
    assert_eq!(
        allowed(&[("ALLOWED_HOSTS", "API.example, b")]),
        Some(vec!["api.example".to_owned(), "b".to_owned()])
    );
    assert!(allowed(&[&elsewhere[..], &[("ALLOWED_HOSTS", "api.example")]].concat()).is_some());
}

#[test]
fn callers_without_a_key_are_let_in_where_no_others_can_reach_the_service() {
    let open = |settings: &[(&str, &str)]| read(settings).unwrap().http.contract.allow_anonymous;
    for loopback in ["127.0.0.1", "127.0.0.2", "::1", "localhost"] {
        assert!(open(&[("HOST", loopback)]), "{loopback}");
    }
    for reachable in [
        ("HOST", "0.0.0.0"),
        ("HOST", "::"),
        ("ALLOWED_HOSTS", "api.example"),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("ALLOW_ANONYMOUS", "false"),
    ] {
        assert!(!open(&[reachable]), "{reachable:?}");
    }
    assert!(open(&[("ADMIN_PORT", "9000")]));
    assert!(!open(&[("ADMIN_PORT", "9000"), ("ADMIN_HOST", "0.0.0.0")]));
    assert!(open(&[("HOST", "0.0.0.0"), ("ALLOW_ANONYMOUS", "true")]));
}

#[test]
fn env_example_and_settings_table_match_the_declaration() {
    assert!(
        include_str!("../../.env.example") == settings::env_example(),
        "cargo run -- settings > .env.example"
    );
    assert!(
        include_str!("../../docs/operations.md").contains(&settings::table()),
        "put the output of `cargo run -- settings --format markdown` into docs/operations.md"
    );
}

#[test]
fn every_default_is_a_valid_value_of_its_setting() {
    let written: Vec<_> = SETTINGS
        .iter()
        .filter_map(|setting| match setting.default {
            DefaultValue::Is(value) | DefaultValue::Required(value) => Some((setting.name, value)),
            DefaultValue::Other(_) => None,
        })
        .collect();
    let unset = format!("{:?}", read(&[]).unwrap());
    assert_eq!(format!("{:?}", read(&written).unwrap()), unset);
}

#[test]
fn the_openapi_examples_use_the_default_limits() {
    let http = read(&[]).unwrap().http;
    assert_eq!(http.request_timeout, DEFAULT_REQUEST_TIMEOUT);
    assert_eq!(http.body_timeout, DEFAULT_BODY_TIMEOUT);
    let default = PasswordPolicy::default();
    assert_eq!(http.contract.password_policy.min_chars, default.min_chars);
}

#[test]
fn a_misspelt_setting_is_recognized_and_a_foreign_one_is_not() {
    assert_eq!(meant("PASSWORD_MIN_LENGHT"), Some("PASSWORD_MIN_LENGTH"));
    assert_eq!(meant("DATABSE_URL"), Some("DATABASE_URL"));
    assert_eq!(meant("RABBIT_MQ_URL"), Some("RABBITMQ_URL"));
    for others in [
        "DATABASE_URL",
        "PORTS",
        "HOSTS",
        "HOSTNAME",
        "REDIS_URL",
        "DATABASE_NAME",
        "POSTGRES_PASSWORD",
        "LOG_FILE",
    ] {
        assert_eq!(meant(others), None, "{others}");
    }
}
