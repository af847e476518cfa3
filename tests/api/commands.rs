//! The command line and the settings: what they print and how they exit.

use std::process::{Output, Stdio};

use harness::{World, command, start};

const REQUIRED: [(&str, &str); 2] = [
    ("DATABASE_URL", "postgresql://u:hunter22@127.0.0.1:1/d"),
    ("RABBITMQ_URL", "amqp://u:hunter22@127.0.0.1:1/"),
];

pub async fn run(arguments: &[&str], settings: &[(&str, &str)]) -> (Output, String) {
    let output = command(settings)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    (output, String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn every_bad_setting_is_named_and_the_exit_code_is_2() {
    let bad = [
        ("RABBITMQ_URL", "hunter22"),
        ("PORT", "99999"),
        ("LOG_LEVEL", "LOUD"),
        ("HOST", "example.com"),
    ];
    let (output, text) = run(&[], &bad).await;
    assert_eq!(output.status.code(), Some(2), "{text}");
    for name in ["DATABASE_URL", "RABBITMQ_URL", "PORT", "LOG_LEVEL", "HOST"] {
        assert!(
            text.contains(&format!("{name}: ")),
            "{name} is not named in {text}"
        );
    }
    assert!(!text.contains("hunter22"), "{text}");
}

fn folder_with_env(name: &str, text: &str) -> std::path::PathBuf {
    let folder = harness::scratch().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(".env"), text).unwrap();
    folder
}

#[tokio::test]
async fn our_unreadable_env_lines_are_named_without_being_repeated() {
    let folder = folder_with_env("broken-env", "PORT=8000\nDATABASE_URL='hunter22\n");
    let output = command(&[]).current_dir(folder).output().await.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text.contains(".env, line 2: DATABASE_URL") && !text.contains("hunter22"),
        "{text}"
    );
}

#[tokio::test]
async fn our_settings_are_read_from_an_env_file_of_several_tools() {
    let env = "\u{feff}PORT=from-the-file\nhunter22 'is not \
               closed\nKEY=\"-----BEGIN\nPASSWORD_MIN_LENGHT=12\nRABBITMQ_URL=amqp://u:pa$word@h:port\nLOG_LEVEL='$HOME'\n";
    let output = command(&REQUIRED[..1])
        .current_dir(folder_with_env("shared-env", env))
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for said in ["from-the-file", "$HOME", "RABBITMQ_URL: "] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let well = env
        .replace("PORT=from-the-file\n", "")
        .replace("LOG_LEVEL='$HOME'\n", "");
    let folder = folder_with_env("shared-env-2", &well);
    let output = command(&REQUIRED)
        .args(["check", "--settings"])
        .current_dir(folder)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    for said in [
        "line 1: left out",
        "line 2: KEY is left out",
        "PASSWORD_MIN_LENGHT is not a setting: PASSWORD_MIN_LENGTH is",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains("hunter22"), "{text}");
}

#[tokio::test]
async fn an_env_file_that_is_a_folder_is_reported() {
    let folder = harness::scratch().join("folder-env");
    std::fs::create_dir_all(folder.join(".env")).unwrap();
    let output = command(&REQUIRED)
        .current_dir(folder)
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("is a directory")
    );
}

#[tokio::test]
async fn the_env_file_is_read_and_the_environment_wins_over_it() {
    let folder = harness::scratch().join("env");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join(".env"),
        "PORT=from-the-file\nHOST=from-the-file\n",
    )
    .unwrap();
    let output = command(&[&REQUIRED[..], &[("HOST", "from-the-environment")]].concat())
        .current_dir(folder)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("PORT: ")
            && text.contains("from-the-file")
            && text.contains("`from-the-environment`"),
        "{text}"
    );
}

#[tokio::test]
async fn the_env_file_of_a_parent_folder_is_ignored() {
    let folder = harness::scratch().join("parent");
    let below = folder.join("below");
    std::fs::create_dir_all(&below).unwrap();
    std::fs::write(folder.join(".env"), "PORT=from-the-parent\n").unwrap();
    let output = command(&[("RABBITMQ_URL", "no-url")])
        .current_dir(below)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("RABBITMQ_URL: ") && !text.contains("PORT"),
        "{text}"
    );
}

#[tokio::test]
async fn a_port_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (output, text) = run(&[], &[&REQUIRED[..], &[("PORT", &port)]].concat()).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&port) && text.contains("PORT"), "{text}");
}

#[tokio::test]
async fn help_and_version_explain_the_commands() {
    let (output, text) = run(&["--help"], &[]).await;
    assert!(output.status.success());
    for name in [
        "serve",
        "migrate",
        "openapi",
        "outbox",
        "dlq",
        "check",
        "healthcheck",
    ] {
        assert!(text.contains(name), "{text}");
    }
    let (output, text) = run(&["--version"], &[]).await;
    assert!(
        output.status.success() && text.contains(env!("CARGO_PKG_VERSION")),
        "{text}"
    );
    assert_eq!(run(&["dance"], &[]).await.0.status.code(), Some(2));
}

#[tokio::test]
async fn healthcheck_exits_0_for_a_ready_service_and_1_without_one() {
    let (_world, app) = start().await;
    let port = app.address.rsplit(':').next().unwrap().to_owned();
    let (output, text) = run(&["healthcheck"], &[("PORT", &port)]).await;
    assert!(output.status.success(), "{text}");
    let (output, text) = run(&["healthcheck"], &[("PORT", "1")]).await;
    assert_eq!(output.status.code(), Some(1), "{text}");
}

#[tokio::test]
async fn pretty_logs_are_readable_text_without_json() {
    let world = World::new().await;
    let settings = [
        ("DATABASE_URL", world.database_url.as_str()),
        ("LOG_FORMAT", "pretty"),
    ];
    let (output, text) = run(&["migrate"], &settings).await;
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("INFO") && text.contains("The schema is current") && !text.contains('{'),
        "{text}"
    );
}

#[tokio::test]
async fn settings_prints_the_env_example_file() {
    let (output, text) = run(&["settings"], &[]).await;
    assert!(output.status.success());
    assert_eq!(text, include_str!("../../.env.example"));
}
