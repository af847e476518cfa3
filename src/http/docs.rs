//! Pages for people: Swagger UI from assets in the binary, the OpenAPI document, and what each error means.

use axum::{
    Router,
    extract::{Path, State},
    http::header,
    response::{Html, IntoResponse, Redirect},
    routing::get,
};
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    error::{
        ERROR_PAGES, Problem,
        kinds::{KINDS, Kind, NOT_FOUND},
    },
    state::AppState,
};

pub const OPENAPI_PATH: &str = "/openapi.json";

pub fn router() -> Router<AppState> {
    // "none": without it the page asks a validator on the internet for a badge.
    let config = Config::new([OPENAPI_PATH]).validator_url("none").try_it_out_enabled(true);
    Router::new()
        .route("/", get(|| async { Redirect::to("/docs/") }))
        .route(OPENAPI_PATH, get(openapi))
        .route(ERROR_PAGES, get(all_errors))
        .route(&format!("{ERROR_PAGES}/{{code}}"), get(one_error))
        .merge(SwaggerUi::new("/docs").config(config))
}

async fn openapi(State(state): State<AppState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], state.openapi.clone())
}

async fn all_errors() -> Html<String> {
    page("Errors", KINDS.into_iter())
}

async fn one_error(code: Option<Path<String>>) -> Result<Html<String>, Problem> {
    let kind = code.and_then(|Path(code)| KINDS.into_iter().find(|kind| kind.code == code));
    let kind = kind.ok_or_else(|| Problem::new(&NOT_FOUND, format!("{ERROR_PAGES} lists all errors.")))?;
    Ok(page(kind.code, std::iter::once(kind)))
}

fn page<'a>(title: &str, kinds: impl Iterator<Item = &'a Kind>) -> Html<String> {
    let sections: String = kinds.map(section).collect();
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><link rel=\"icon\" href=\"data:,\"><title>{title} - User Management API</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}}\
         code{{background:#eee;padding:0 .2em}}</style>\n\
         <p><a href=\"/docs/\">API</a> · <a href=\"{ERROR_PAGES}\">All errors</a></p>\n{sections}</html>\n"
    ))
}

fn section(kind: &Kind) -> String {
    let Kind { code, status, title, meaning, .. } = kind;
    let status = status.as_u16();
    // In the table's texts, back quotes set code.
    let meaning: String = meaning
        .split('`')
        .enumerate()
        .map(|(n, text)| if n % 2 == 1 { format!("<code>{text}</code>") } else { text.into() })
        .collect();
    format!("<h2 id=\"{code}\"><code>{code}</code></h2>\n<p><b>{status} · {title}.</b> {meaning}</p>\n")
}
