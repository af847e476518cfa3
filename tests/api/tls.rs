//! TLS to both servers works with the configured certificates and fails with any other, with an
//! error that names the setting.

use crate::api::commands::run;
use harness::{App, Authority, Protocol, World, start};

/// How a server is reached by TLS.
struct Server<'a> {
    setting: &'static str,
    /// Without TLS.
    url: &'a str,
    scheme: &'static str,
    port: u16,
    /// The parameter that asks for verification.
    verify: (&'static str, &'static str),
    /// The parameters for the authority and for the client's certificate and key.
    files: [&'static str; 3],
}

impl Server<'_> {
    fn url(&self, authority: &str, host: &str, client: Option<&(String, String)>) -> String {
        let plain = url::Url::parse(self.url).unwrap();
        let mut url =
            url::Url::parse(&plain.as_str().replacen(plain.scheme(), self.scheme, 1)).unwrap();
        url.set_host(Some(host)).unwrap();
        url.set_port(Some(self.port)).unwrap();
        let [authority_file, certificate_file, key_file] = self.files;
        let mut query = url.query_pairs_mut();
        query
            .clear()
            .append_pair(self.verify.0, self.verify.1)
            .append_pair(authority_file, authority);
        if let Some((certificate, key)) = client {
            query
                .append_pair(certificate_file, certificate)
                .append_pair(key_file, key);
        }
        drop(query);
        url.into()
    }
}

async fn check(world: &World, setting: &str, url: &str) -> (bool, String) {
    let settings = [
        &world.settings()[..],
        &[("DATABASE_DIRECT_URL", ""), (setting, url)],
    ]
    .concat();
    let (output, text) = run(&["check"], &settings).await;
    (output.status.success(), text)
}

/// Checks that the correct setup passes and that each single wrong part fails.
async fn assert_each_part_is_verified(world: &World, ours: &Authority, server: Server<'_>) {
    let setting = server.setting;
    let advice = format!("{}=", server.files[0]);
    let another = Authority::create();
    let client = ours.client();
    let right = server.url(&ours.file(), "localhost", Some(&client));
    let (is_well, said) = check(world, setting, &right).await;
    assert!(is_well, "{said}");
    let wrong = [
        (
            "another authority",
            server.url(&another.file(), "localhost", Some(&client)),
        ),
        (
            "another host",
            server.url(&ours.file(), "127.0.0.1", Some(&client)),
        ),
        (
            "another's certificate",
            server.url(&ours.file(), "localhost", Some(&another.client())),
        ),
        (
            "no certificate",
            server.url(&ours.file(), "localhost", None),
        ),
        (
            "no such file",
            server.url("/nowhere/ca.pem", "localhost", Some(&client)),
        ),
    ];
    for (what, url) in wrong {
        let (is_well, said) = check(world, setting, &url).await;
        assert!(
            !is_well && said.contains("authority") && said.contains(&advice),
            "{what}: {said}"
        );
        assert!(
            !said.contains("start PostgreSQL there") && !said.contains("start RabbitMQ there"),
            "{what}: {said}"
        );
    }
    let app = App::start(world)
        .with(&[("DATABASE_DIRECT_URL", ""), (setting, &right)])
        .await;
    app.create_user("Анна").await;
    app.log
        .wait_for("Event received", |line| {
            line["event_type"] == "user.created"
        })
        .await;
}

#[tokio::test]
async fn postgresql_is_reached_only_with_the_named_certificates() {
    let world = World::new().await;
    let ours = Authority::create();
    let server = Server {
        setting: "DATABASE_URL",
        url: &world.database_url,
        scheme: "postgresql",
        port: ours
            .before(&world.database_url, "localhost", Protocol::Postgres)
            .await,
        // As the original's driver spells `sslmode`.
        verify: ("ssl", "verify-full"),
        files: ["sslrootcert", "sslcert", "sslkey"],
    };
    assert_each_part_is_verified(&world, &ours, server).await;
}

#[tokio::test]
async fn rabbitmq_is_reached_only_with_the_named_certificates() {
    let world = World::new().await;
    let ours = Authority::create();
    let server = Server {
        setting: "RABBITMQ_URL",
        url: &world.broker_url,
        scheme: "amqps",
        port: ours
            .before(&world.broker_url, "localhost", Protocol::Amqp)
            .await,
        verify: ("verify", "verify_peer"),
        files: ["cacertfile", "certfile", "keyfile"],
    };
    assert_each_part_is_verified(&world, &ours, server).await;
}

#[tokio::test]
async fn an_unsupported_url_parameter_stops_the_start_by_name() {
    let (world, _app) = start().await;
    for (setting, query, named) in [
        ("DATABASE_URL", "SSLMODE=require", "`SSLMODE`"),
        (
            "DATABASE_URL",
            "target_session_attrs=read-write",
            "`target_session_attrs`",
        ),
        (
            "DATABASE_URL",
            "channel_binding=require",
            "`channel_binding`",
        ),
        ("DATABASE_URL", "ssl=maybe", "verify-full"),
        ("RABBITMQ_URL", "verify=verify_none", "verify_peer"),
        ("RABBITMQ_URL", "cacertfile=/etc/ca.pem", "amqps://"),
    ] {
        let settings: Vec<_> = world.settings();
        let url = format!(
            "{}?{query}",
            settings
                .iter()
                .find(|(name, _)| *name == setting)
                .unwrap()
                .1
        );
        let (output, said) = run(&["serve"], &[&settings[..], &[(setting, &url)]].concat()).await;
        assert_eq!(output.status.code(), Some(2), "{query}: {said}");
        assert!(
            said.contains(setting) && said.contains(named),
            "{query}: {said}"
        );
    }
}
