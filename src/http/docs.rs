//! The documentation: Swagger UI from embedded assets, the OpenAPI document, and the error pages.
//! Each page is rendered and hashed once, when the service starts.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get};
use utoipa_swagger_ui::{Config, SwaggerFile};

use super::problem::types::{NOT_FOUND, PROBLEM_TYPES, ProblemType};
use super::problem::{ERROR_PAGES, Problem};
use super::routes::{BELOW_DOCS, DOCS_FILE, ERROR_PAGE, HOME, LICENSE_PATH, OPENAPI_PATH};
use super::state::AppState;

/// The files of Swagger UI that `docs/index.html` loads. The package has more, such as its own
/// page; they are not served.
const SWAGGER_FILES: [&str; 4] = [
    "swagger-ui.css",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-initializer.js",
];

const HTML: &str = "text/html; charset=utf-8";

/// Pages load nothing from other hosts, run no inline scripts, and cannot be framed. Swagger UI
/// needs inline styles and `data:` images.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' \
                                       'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
                                       base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the documentation; `openapi` is the OpenAPI document, as JSON.
pub(crate) fn router(openapi: String) -> Router<AppState> {
    let openapi = Page::new("application/json", openapi);
    let errors = Page::new(HTML, all_errors());
    let each_error = PROBLEM_TYPES
        .iter()
        .map(|kind| (kind.code, Page::new(HTML, page(kind.code, &section(kind)))));
    let each_error = pages(each_error.collect(), "/docs/errors lists all errors.");
    Router::new()
        .route("/", get(|| async { Redirect::to(HOME) }))
        .route(OPENAPI_PATH, openapi.route())
        .route(ERROR_PAGES, errors.route())
        .route(ERROR_PAGE, each_error)
        .route(LICENSE_PATH, Page::new(HTML, license()).route())
        .route("/docs", get(|| async { Redirect::to(HOME) }))
        .route(
            HOME,
            Page::new(HTML, include_str!("docs/index.html")).route(),
        )
        .route(
            DOCS_FILE,
            pages(swagger_files(), "Swagger UI has no such file."),
        )
        .route(BELOW_DOCS, pages(HashMap::new(), "There is no such page."))
        .layer(from_fn(for_browsers))
}

/// A page as it is served, with its entity tag.
#[derive(Clone)]
struct Page {
    content_type: HeaderValue,
    body: Bytes,
    etag: HeaderValue,
}

impl Page {
    fn new(content_type: &str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        // Both are valid header values.
        let header =
            |value: &str| HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""));
        let etag = format!("\"{:016x}\"", hasher.finish());
        Self {
            content_type: header(content_type),
            body,
            etag: header(&etag),
        }
    }

    fn route(self) -> MethodRouter<AppState> {
        get(|headers: HeaderMap| async move { self.answer(&headers) })
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let known = headers
            .get(header::IF_NONE_MATCH)
            .and_then(|known| known.to_str().ok())
            .unwrap_or_default();
        let mut known = known
            .split(',')
            .map(|tag| tag.trim().trim_start_matches("W/"));
        let etag = (header::ETAG, self.etag.clone());
        if known.any(|tag| tag == "*" || tag == self.etag) {
            return (StatusCode::NOT_MODIFIED, [etag]).into_response();
        }
        (
            [etag, (header::CONTENT_TYPE, self.content_type.clone())],
            self.body.clone(),
        )
            .into_response()
    }
}

/// Serves the page that the last segment of the path names.
fn pages(pages: HashMap<&'static str, Page>, missing: &'static str) -> MethodRouter<AppState> {
    let pages = Arc::new(pages);
    get(
        move |name: Option<Path<String>>, headers: HeaderMap| async move {
            let page = name
                .as_ref()
                .and_then(|Path(name)| pages.get(name.as_str()));
            page.map(|page| page.answer(&headers))
                .ok_or_else(|| Problem::new(&NOT_FOUND, missing))
        },
    )
}

fn swagger_files() -> HashMap<&'static str, Page> {
    // Without "none", the page fetches a badge from a validator on the internet.
    let config = Config::new([OPENAPI_PATH])
        .validator_url("none")
        .try_it_out_enabled(true)
        .use_base_layout();
    let config = Arc::new(config);
    let load = |name: &'static str| {
        let found: Option<SwaggerFile<'static>> = utoipa_swagger_ui::serve(name, config.clone())
            .ok()
            .flatten();
        found.map(
            |SwaggerFile {
                 bytes,
                 content_type,
                 ..
             }| (name, Page::new(&content_type, bytes.into_owned())),
        )
    };
    SWAGGER_FILES.into_iter().filter_map(load).collect()
}

/// Adds security and caching headers to each page.
async fn for_browsers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(CONTENT_SECURITY_POLICY),
    );
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn license() -> String {
    let texts = [
        include_str!("../../LICENSE-MIT"),
        include_str!("../../LICENSE-APACHE"),
    ];
    page(
        "Licence",
        &texts
            .map(|text| format!("<pre>{}</pre>\n", text.replace('<', "&lt;")))
            .concat(),
    )
}

fn all_errors() -> String {
    page(
        "Errors",
        &PROBLEM_TYPES
            .iter()
            .copied()
            .map(section)
            .collect::<String>(),
    )
}

fn page(title: &str, content: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"data:,\"><title>{title} - User Management API</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;\
         overflow-wrap:anywhere}}code{{background:#eee;padding:0 .2em}}pre{{white-space:pre-wrap}}</style>\n\
         <p><a href=\"/docs/\">API</a> · <a href=\"{ERROR_PAGES}\">All errors</a></p>\n{content}</html>\n"
    )
}

fn section(kind: &ProblemType) -> String {
    let ProblemType {
        code,
        status,
        title,
        meaning,
        ..
    } = kind;
    let status = status.as_u16();
    // Back quotes in the table's texts mark code.
    let meaning: String = meaning
        .split('`')
        .enumerate()
        .map(|(n, text)| {
            if n % 2 == 1 {
                format!("<code>{text}</code>")
            } else {
                text.into()
            }
        })
        .collect();
    format!(
        "<h2 id=\"{code}\"><code>{code}</code></h2>\n<p><b>{status} · {title}.</b> {meaning}</p>\n"
    )
}
