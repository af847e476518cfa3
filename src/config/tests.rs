//! Settings, good and bad.

use std::collections::HashMap;

use super::{Config, ConfigError, NAMES, meant};
use crate::database::Route;

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
fn every_bad_setting_is_named_at_once_and_no_secret_is_repeated() {
    let error = read(&[
        ("DATABASE_URL", "mysql://u:hunter22@h/d"),
        ("RABBITMQ_URL", "http://u:hunter22@h"),
        ("PORT", "eighty"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("MIGRATE_ON_START", "maybe"),
        ("AMQP_QUEUE_TYPE", "stream"),
        ("PASSWORD_MIN_LENGTH", "0"),
        ("HOST", "0.0.0.0"),
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
fn a_direct_url_that_leads_elsewhere_means_a_pooler() {
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
fn no_host_name_is_taken_that_is_not_asked_for() {
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
fn an_address_that_others_can_reach_needs_allow_anonymous() {
    assert!(
        read(&[("HOST", "0.0.0.0")])
            .unwrap_err()
            .to_string()
            .contains("ALLOW_ANONYMOUS=true")
    );
    assert!(read(&[("HOST", "::")]).is_err());
    assert!(read(&[("HOST", "0.0.0.0"), ("ALLOW_ANONYMOUS", "true")]).is_ok());
    for loopback in ["127.0.0.2", "::1", "localhost"] {
        assert!(read(&[("HOST", loopback)]).is_ok(), "{loopback}");
    }
}

#[test]
fn the_names_are_those_that_the_example_explains() {
    let example = include_str!("../../.env.example");
    let mut explained: Vec<_> = example
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once('='))
        .map(|(name, _)| name)
        .filter(|name| {
            name.bytes()
                .all(|letter| letter.is_ascii_uppercase() || letter == b'_')
        })
        .collect();
    explained.sort_unstable();
    assert_eq!(explained, NAMES);
}

#[test]
fn a_name_that_is_almost_one_of_ours_is_taken_for_misspelt_and_others_names_are_not() {
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
