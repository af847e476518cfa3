//! Pages for people: Swagger UI from embedded assets, the OpenAPI document, and the error pages.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui::{Config, SwaggerFile};

use super::problem::types::{NOT_FOUND, PROBLEM_TYPES, ProblemType};
use super::problem::{ERROR_PAGES, Problem};
use super::state::AppState;

pub const OPENAPI_PATH: &str = "/openapi.json";
const LICENSE_PATH: &str = "/docs/license";

/// Pages load nothing from other hosts, run no inline scripts, and cannot be framed. Swagger UI needs inline styles and `data:`
/// images.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub fn router() -> Router<AppState> {
    // Without "none", the page fetches a badge from a validator on the internet.
    let config = Config::new([OPENAPI_PATH]).validator_url("none").try_it_out_enabled(true).use_base_layout();
    let config = Arc::new(config);
    Router::new()
        .route("/", get(|| async { Redirect::to("/docs/") }))
        .route(OPENAPI_PATH, get(openapi))
        .route(&format!("{OPENAPI_PATH}/"), get(openapi))
        .route(ERROR_PAGES, get(all_errors))
        .route(&format!("{ERROR_PAGES}/"), get(all_errors))
        .route(&format!("{ERROR_PAGES}/{{code}}"), get(one_error))
        .route(&format!("{ERROR_PAGES}/{{code}}/"), get(one_error))
        .route(LICENSE_PATH, get(license))
        .route("/docs", get(|| async { Redirect::to("/docs/") }))
        .route("/docs/", get(|| async { Html(include_str!("docs/index.html")) }))
        .route("/docs/{file}", get(move |Path(file): Path<String>| async move { asset(&file, config) }))
        .layer(from_fn(for_browsers))
}

/// Adds security and caching headers to each page.
async fn for_browsers(request: Request, next: Next) -> Response {
    let is_get = request.method() == Method::GET;
    let known = request.headers().get(header::IF_NONE_MATCH).cloned();
    let mut response = next.run(request).await;
    if is_get && response.status() == StatusCode::OK {
        response = with_etag(response, known.as_ref()).await;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn with_etag(response: Response, known: Option<&HeaderValue>) -> Response {
    let (mut parts, body) = response.into_parts();
    // These bodies are all in memory: reading one cannot fail.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let etag = format!("\"{:016x}\"", hasher.finish());
    let known = known.and_then(|known| known.to_str().ok()).unwrap_or_default();
    let is_known = known.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == "*" || tag == etag);
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        parts.headers.insert(header::ETAG, etag);
    }
    if is_known {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(header::CONTENT_TYPE);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(body))
}

async fn openapi(State(state): State<AppState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], state.openapi.clone())
}

/// A file of Swagger UI.
fn asset(file: &str, config: Arc<Config<'static>>) -> Result<impl IntoResponse + use<>, Problem> {
    let no_such_file = || Problem::new(&NOT_FOUND, "Swagger UI has no such file.");
    let found: Option<SwaggerFile<'static>> = utoipa_swagger_ui::serve(file, config).ok().flatten();
    let SwaggerFile { bytes, content_type, .. } = found.ok_or_else(no_such_file)?;
    Ok(([(header::CONTENT_TYPE, content_type)], bytes))
}

async fn license() -> Html<String> {
    let texts = [include_str!("../../LICENSE-MIT"), include_str!("../../LICENSE-APACHE")];
    page("Licence", &texts.map(|text| format!("<pre>{}</pre>\n", text.replace('<', "&lt;"))).concat())
}

async fn all_errors() -> Html<String> {
    page("Errors", &PROBLEM_TYPES.iter().copied().map(section).collect::<String>())
}

async fn one_error(code: Option<Path<String>>) -> Result<Html<String>, Problem> {
    let kind = code.and_then(|Path(code)| PROBLEM_TYPES.iter().copied().find(|kind| kind.code == code));
    let kind = kind.ok_or_else(|| Problem::new(&NOT_FOUND, format!("{ERROR_PAGES} lists all errors.")))?;
    Ok(page(kind.code, &section(kind)))
}

fn page(title: &str, content: &str) -> Html<String> {
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"data:,\"><title>{title} - User Management API</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;\
         overflow-wrap:anywhere}}code{{background:#eee;padding:0 .2em}}pre{{white-space:pre-wrap}}</style>\n\
         <p><a href=\"/docs/\">API</a> · <a href=\"{ERROR_PAGES}\">All errors</a></p>\n{content}</html>\n"
    ))
}

fn section(kind: &ProblemType) -> String {
    let ProblemType { code, status, title, meaning, .. } = kind;
    let status = status.as_u16();
    // Back quotes in the table's texts mark code.
    let meaning: String = meaning
        .split('`')
        .enumerate()
        .map(|(n, text)| if n % 2 == 1 { format!("<code>{text}</code>") } else { text.into() })
        .collect();
    format!("<h2 id=\"{code}\"><code>{code}</code></h2>\n<p><b>{status} · {title}.</b> {meaning}</p>\n")
}
