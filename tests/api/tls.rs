//! TLS to both servers: it works with the certificates that are named, and fails with any other, saying what to name.

use crate::api::commands::run;
use crate::harness::{App, Authority, Protocol, World, start};

/// `url` by TLS, at another port.
fn encrypted(url: &str, scheme: &str, host: &str, port: u16, parameters: &[(&str, &str)]) -> String {
    let url = url::Url::parse(url).unwrap();
    let mut encrypted = url::Url::parse(&url.as_str().replacen(url.scheme(), scheme, 1)).unwrap();
    encrypted.set_host(Some(host)).unwrap();
    encrypted.set_port(Some(port)).unwrap();
    encrypted.query_pairs_mut().clear().extend_pairs(parameters);
    encrypted.into()
}

/// The settings of one server, from `(authority, host, client's certificate and key)`.
type Settings<'a> = &'a dyn Fn(&str, &str, Option<&(String, String)>) -> String;

async fn check(world: &World, setting: &str, url: &str) -> (bool, String) {
    let settings = [&world.settings()[..], &[("DATABASE_DIRECT_URL", ""), (setting, url)]].concat();
    let (output, text) = run(&["check"], &settings).await;
    (output.status.success(), text)
}

/// Right, then each part wrong by itself.
async fn assert_each_part_is_verified(world: &World, ours: &Authority, setting: &str, advice: &str, url: Settings<'_>) {
    let (another, client) = (Authority::new(), ours.client());
    let right = url(&ours.file(), "localhost", Some(&client));
    let (is_well, said) = check(world, setting, &right).await;
    assert!(is_well, "{said}");
    let wrong = [
        ("another authority", url(&another.file(), "localhost", Some(&client))),
        ("another host", url(&ours.file(), "127.0.0.1", Some(&client))),
        ("another's certificate", url(&ours.file(), "localhost", Some(&another.client()))),
        ("no certificate", url(&ours.file(), "localhost", None)),
        ("no such file", url("/nowhere/ca.pem", "localhost", Some(&client))),
    ];
    for (what, url) in wrong {
        let (is_well, said) = check(world, setting, &url).await;
        assert!(!is_well && said.contains("authority") && said.contains(advice), "{what}: {said}");
        assert!(!said.contains("start PostgreSQL there") && !said.contains("start RabbitMQ there"), "{what}: {said}");
    }
    let app = App::start_with(world, &[("DATABASE_DIRECT_URL", ""), (setting, &right)]).await;
    app.create_user("Анна").await;
    app.log.wait_for("Event received", |line| line["event_type"] == "user.created").await;
}

#[tokio::test]
async fn postgresql_is_reached_with_the_certificates_that_are_named_and_no_others() {
    let (world, ours) = (World::new().await, Authority::new());
    let port = ours.before(&world.database_url, "localhost", Protocol::Postgres).await;
    let url = |authority: &str, host: &str, client: Option<&(String, String)>| {
        // As the original's driver spells `sslmode`.
        let mut parameters = vec![("ssl", "verify-full"), ("sslrootcert", authority)];
        if let Some((certificate, key)) = client {
            parameters.extend([("sslcert", certificate.as_str()), ("sslkey", key)]);
        }
        encrypted(&world.database_url, "postgresql", host, port, &parameters)
    };
    assert_each_part_is_verified(&world, &ours, "DATABASE_URL", "sslrootcert=", &url).await;
}

#[tokio::test]
async fn rabbitmq_is_reached_with_the_certificates_that_are_named_and_no_others() {
    let (world, ours) = (World::new().await, Authority::new());
    let port = ours.before(&world.broker_url, "localhost", Protocol::Amqp).await;
    let url = |authority: &str, host: &str, client: Option<&(String, String)>| {
        let mut parameters = vec![("verify", "verify_peer"), ("cacertfile", authority)];
        if let Some((certificate, key)) = client {
            parameters.extend([("certfile", certificate.as_str()), ("keyfile", key)]);
        }
        encrypted(&world.broker_url, "amqps", host, port, &parameters)
    };
    assert_each_part_is_verified(&world, &ours, "RABBITMQ_URL", "cacertfile=", &url).await;
}

#[tokio::test]
async fn what_a_url_asks_for_and_the_service_would_not_do_stops_the_start_by_name() {
    let (world, _app) = start().await;
    for (setting, query, named) in [
        ("DATABASE_URL", "SSLMODE=require", "`SSLMODE`"),
        ("DATABASE_URL", "target_session_attrs=read-write", "`target_session_attrs`"),
        ("DATABASE_URL", "channel_binding=require", "`channel_binding`"),
        ("DATABASE_URL", "ssl=maybe", "verify-full"),
        ("RABBITMQ_URL", "verify=verify_none", "verify_peer"),
        ("RABBITMQ_URL", "cacertfile=/etc/ca.pem", "amqps://"),
    ] {
        let settings: Vec<_> = world.settings();
        let url = format!("{}?{query}", settings.iter().find(|(name, _)| *name == setting).unwrap().1);
        let (output, said) = run(&["serve"], &[&settings[..], &[(setting, &url)]].concat()).await;
        assert_eq!(output.status.code(), Some(2), "{query}: {said}");
        assert!(said.contains(setting) && said.contains(named), "{query}: {said}");
    }
}
