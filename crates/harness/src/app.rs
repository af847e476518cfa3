//! The service as a process, used as a client would.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::digest::Digest;
use super::log::Log;
use super::process::{Process, command, with_open_files};
use super::servers::World;
use super::{Observer, audit, until};

/// Must never be output: every response is searched for it, and, at the end of every test, every
/// log line that was kept.
pub const PASSWORD: &str = "canary-in-the-coal-mine";
/// How an argon2 hash begins.
const HASH: &str = "$argon2";

pub struct App {
    pub address: String,
    pub log: Log,
    /// Under faults, so requests may fail; its log is in a digest.
    is_digested: bool,
    process: Process,
    client: reqwest::Client,
}

/// A service to start. Awaiting it starts the service and waits until it is ready.
#[must_use]
pub struct Start<'a> {
    world: &'a World,
    settings: Vec<(&'a str, &'a str)>,
    open_files: Option<u32>,
    digest: Option<Arc<Digest>>,
}

impl<'a> Start<'a> {
    /// With other settings than the default ones.
    pub fn with(mut self, settings: &[(&'a str, &'a str)]) -> Self {
        self.settings.extend(settings);
        self
    }

    /// With a limit of open files.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// With its log summarized, not kept, and at the default level.
    pub fn digest(mut self, digest: &Arc<Digest>) -> Self {
        self.digest = Some(digest.clone());
        self
    }

    /// Does not wait until it is ready.
    pub async fn launch(self) -> App {
        let mut settings = self.world.settings();
        settings.push(("PORT", "0"));
        if self.digest.is_none() {
            settings.push(("LOG_LEVEL", "TRACE"));
        }
        settings.extend(self.settings);
        let mut command = match self.open_files {
            Some(limit) => with_open_files(limit, &settings),
            None => command(&settings),
        };
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let is_digested = self.digest.is_some();
        let log = Log::default();
        log.collect(process.stdout.take().unwrap(), self.digest);
        let listening = log.wait_for("Listening", |_| true).await;
        App {
            address: listening["address"].as_str().unwrap().to_owned(),
            log,
            is_digested,
            process: Process(process),
            client: reqwest::Client::new(),
        }
    }
}

impl<'a> IntoFuture for Start<'a> {
    type Output = App;
    type IntoFuture = LocalBoxFuture<'a, App>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let app = self.launch().await;
            app.until_ready("ready").await;
            app
        })
    }
}

/// A world, and a service in it that is ready.
pub async fn start() -> (World, App) {
    start_with(&[]).await
}

/// Like [`start`], with other settings.
pub async fn start_with(settings: &[(&str, &str)]) -> (World, App) {
    let world = World::new().await;
    let app = App::start(&world).with(settings).await;
    (world, app)
}

/// Like [`start`], with another subscriber to the events.
pub async fn start_observed() -> (World, Observer, App) {
    observed(World::new().await).await
}

/// Like [`start_observed`], in a world that records all changes.
pub async fn start_audited() -> (World, Observer, App) {
    let world = World::new().await;
    audit(&world).await;
    observed(world).await
}

async fn observed(world: World) -> (World, Observer, App) {
    let observer = Observer::new(&world).await;
    let app = App::start(&world).await;
    (world, observer, app)
}

impl App {
    /// A service in `world`, one of the replicas there.
    pub fn start(world: &World) -> Start<'_> {
        Start {
            world,
            settings: Vec::new(),
            open_files: None,
            digest: None,
        }
    }

    /// The response of `/health/ready`; with a digest, `Null` if none comes in time.
    pub async fn health(&self) -> Value {
        if !self.is_digested {
            return self.get("/health/ready").await.body;
        }
        let health = self.request(Method::GET, "/health/ready");
        match health.timeout(Duration::from_secs(5)).send().await {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    pub async fn is(&self, status: &str) -> bool {
        self.health().await["status"] == status
    }

    pub async fn until_ready(&self, status: &str) {
        until(format!("health status {status}"), || self.is(status)).await;
    }

    pub async fn leads(&self) -> bool {
        self.health().await["checks"]["relay"] == "leading"
    }

    #[track_caller]
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("http://{}{path}", self.address))
    }

    /// A GET on a connection of its own.
    pub fn fresh(&self, path: &str) -> reqwest::RequestBuilder {
        reqwest::Client::new().get(format!("http://{}{path}", self.address))
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn metrics(&self) -> String {
        self.get("/metrics").await.text
    }

    /// A counter of `/metrics` that has no labels.
    pub async fn metric(&self, name: &str) -> u32 {
        let metrics = self.metrics().await;
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name} in {metrics}"))
            .parse()
            .unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::DELETE, path)).await
    }

    /// Creates a user, and returns its id.
    #[track_caller]
    pub fn create_user(&self, name: &str) -> impl Future<Output = i64> {
        let caller = std::panic::Location::caller();
        async move {
            let answer = self.post("/users", &new_user(name)).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{caller}: {answer:?}");
            answer.body["id"].as_i64().unwrap()
        }
    }

    /// Changes the limit of open files, `soft:hard`, of the running process.
    pub fn limit_open_files(&self, limit: &str) {
        let pid = self.id().to_string();
        let limited = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={limit}")])
            .status();
        assert!(limited.unwrap().success());
    }
}

impl Deref for App {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for App {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if self.is_digested {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the service's log:\n{}", self.log.text());
        } else {
            assert_no_secret("the log", &self.log.text());
        }
    }
}

/// A body that creates a user.
pub fn new_user(name: &str) -> Value {
    json!({"name": name, "surname": "Тестов", "password": PASSWORD})
}

fn assert_no_secret(place: &str, text: &str) {
    assert!(
        !text.contains(PASSWORD) && !text.contains(HASH),
        "a password is in {place}:\n{text}"
    );
}

/// A response, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// `Null` if the body is not JSON.
    pub body: Value,
    pub text: String,
}

impl Answer {
    #[track_caller]
    pub fn of(request: reqwest::RequestBuilder) -> impl Future<Output = Self> {
        let caller = std::panic::Location::caller();
        async move {
            let request = request.timeout(Duration::from_secs(30));
            let response = request
                .send()
                .await
                .unwrap_or_else(|error| panic!("{caller}: {error:?}"));
            let status = response.status();
            let headers = response.headers().clone();
            let text = response
                .text()
                .await
                .unwrap_or_else(|error| panic!("{caller}: {error:?}"));
            assert_no_secret("an answer", &text);
            Self {
                status,
                headers,
                body: serde_json::from_str(&text).unwrap_or_default(),
                text,
            }
        }
    }

    /// `None` if the connection is refused or broken.
    pub async fn try_of(request: reqwest::RequestBuilder) -> Option<Self> {
        let response = request.timeout(Duration::from_secs(30)).send().await.ok()?;
        let status = response.status();
        let headers = response.headers().clone();
        let text = response.text().await.ok()?;
        Some(Self {
            status,
            headers,
            body: serde_json::from_str(&text).unwrap_or_default(),
            text,
        })
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {self:?}"))
            .to_str()
            .unwrap()
    }

    /// Checks which error it is, and everything that all errors have in common.
    #[track_caller]
    pub fn assert_problem(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code)),
            "{self:?}"
        );
        assert_eq!(
            self.header(CONTENT_TYPE.as_str()),
            "application/problem+json"
        );
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("/docs/errors/{code}"));
        assert_eq!(self.body["trace_id"], self.header("x-trace-id"));
        for key in ["title", "detail", "instance"] {
            assert!(
                self.body[key].as_str().is_some_and(|text| !text.is_empty()),
                "no {key} in {self:?}"
            );
        }
        assert!(self.body["errors"].is_array(), "{self:?}");
        assert_eq!(
            self.headers.contains_key("retry-after"),
            status == 503,
            "{self:?}"
        );
    }

    /// `pointer` or `parameter`, and code, of each error.
    pub fn faults(&self) -> Vec<(&str, &str)> {
        let fault = |fault| {
            let fault: &Value = fault;
            let place = fault["pointer"]
                .as_str()
                .or(fault["parameter"].as_str())
                .unwrap();
            (place, fault["code"].as_str().unwrap())
        };
        self.body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .map(fault)
            .collect()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{:#?}\n{}", self.status, self.headers, self.text)
    }
}
