//! The routes of users: extract, call the use case, answer.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{json::UserFields, query::NoQuery},
    openapi::{CreateUser, UpdateUser},
    problem::{Problem, types::USER_NOT_FOUND},
    state::AppState,
};
use crate::{
    domain::{
        page::{MAX_OFFSET, Page},
        user::{User, UserId},
    },
    trace_id::TraceId,
};

pub const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

pub fn router() -> OpenApiRouter<AppState> {
    let collection = routes!(create, list);
    let user = routes!(get, update, delete);
    // With a slash at the end, as the seed's calls have it, and without; the document names one.
    OpenApiRouter::new()
        .route("/users/", collection.2.clone())
        .route("/users/{id}/", user.2.clone())
        .routes(collection)
        .routes(user)
}

/// Create a user
///
/// Publishes `user.created`.
#[utoipa::path(
    post, path = "/users", tag = "users", operation_id = "create_user",
    request_body(content = CreateUser, example = json!({"name": "Иван", "surname": "Иванов", "password": "secret123"})),
    responses((status = 201, description = "The user as stored", body = User, headers(("Location" = String, description = "Path of the new user"))))
)]
async fn create(
    State(state): State<AppState>,
    Extension(trace_id): Extension<TraceId>,
    _: NoQuery,
    fields: UserFields,
) -> Result<impl IntoResponse, Problem> {
    let new = fields.into_new_user(state.password_policy)?;
    let user = state.users.create(new, trace_id).await?;
    let location = [(header::LOCATION, format!("/users/{}", user.id))];
    Ok((StatusCode::CREATED, location, Json(user)))
}

/// List users
///
/// In the order of their ids, a page at a time.
#[utoipa::path(
    get, path = "/users", tag = "users", operation_id = "list_users",
    params(
        ("limit" = Option<i64>, Query, description = "Users in a page", minimum = 1, maximum = 100, example = 100),
        ("offset" = Option<i64>, Query, description = "Users to leave out before the page; a cursor, for pages past the largest offset, is to come", minimum = 0, maximum = 100_000, example = 0),
    ),
    responses((
        status = 200, description = "One page of users", body = Vec<User>,
        headers(
            ("X-Total-Count" = i64, description = "Number of all users"),
            ("Link" = String, description = "Pages `first`, `prev`, `next`, `last` (RFC 8288)"),
        )
    ))
)]
async fn list(State(state): State<AppState>, page: Page) -> Result<impl IntoResponse, Problem> {
    let listed = state.users.list(page).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (TOTAL_COUNT, listed.total.to_string()),
        (header::LINK, links(page, listed.total)),
    ];
    // Numbers and text: nothing of a user fails to become JSON.
    Ok((headers, listed.shown(|users| serde_json::to_vec(users).unwrap_or_default().into())))
}

fn links(page: Page, total: i64) -> String {
    let neighbours = [
        ("first", Some(page.first())),
        ("prev", page.previous(total)),
        ("next", page.next(total)),
        ("last", Some(page.last(total))),
    ];
    let link = |(relation, page): (&str, Option<Page>)| {
        // Past the largest offset it would lead to an error.
        let Page { limit, offset } = page.filter(|page| page.offset <= MAX_OFFSET)?;
        Some(format!("</users?limit={limit}&offset={offset}>; rel=\"{relation}\""))
    };
    neighbours.into_iter().filter_map(link).collect::<Vec<_>>().join(", ")
}

/// Get a user
#[utoipa::path(
    get, path = "/users/{id}", tag = "users", operation_id = "get_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1)),
    responses((status = 200, description = "The user", body = User))
)]
async fn get(State(state): State<AppState>, id: UserPath, _: NoQuery) -> Result<impl IntoResponse, Problem> {
    Ok(Json(state.users.get(id.0).await?))
}

/// Update a user
///
/// Partial: a field that is absent or null stays as it is. Publishes `user.updated`, unless nothing changes; a password
/// that is given always counts as a change.
#[utoipa::path(
    put, path = "/users/{id}", tag = "users", operation_id = "update_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1)),
    request_body(content = UpdateUser, example = json!({"name": "Петр", "surname": "Петров"})),
    responses((status = 200, description = "The user as stored", body = User))
)]
async fn update(
    State(state): State<AppState>,
    Extension(trace_id): Extension<TraceId>,
    id: UserPath,
    _: NoQuery,
    fields: UserFields,
) -> Result<impl IntoResponse, Problem> {
    let changes = fields.into_changes(state.password_policy)?;
    Ok(Json(state.users.update(id.0, changes, trace_id).await?))
}

/// Delete a user
///
/// Publishes `user.deleted`.
#[utoipa::path(
    delete, path = "/users/{id}", tag = "users", operation_id = "delete_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1)),
    responses((status = 204, description = "The user is gone"))
)]
async fn delete(
    State(state): State<AppState>,
    Extension(trace_id): Extension<TraceId>,
    id: UserPath,
    _: NoQuery,
) -> Result<impl IntoResponse, Problem> {
    state.users.delete(id.0, trace_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The id in the path; what cannot be an id belongs to no user.
struct UserPath(UserId);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for UserPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Problem> {
        let raw = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = raw.and_then(|Path(raw)| UserId::parse(&raw));
        id.map(Self).ok_or_else(|| Problem::new(&USER_NOT_FOUND, "A user's id is a positive whole number."))
    }
}

#[cfg(test)]
mod tests {
    use super::{Page, links};

    #[test]
    fn pages_past_the_largest_offset_have_no_link() {
        let links_of = |offset| links(Page { limit: 100, offset }, 1_000_000);
        assert!(links_of(0).contains("rel=\"next\"") && !links_of(0).contains("rel=\"last\""));
        assert!(links_of(100_000).contains("rel=\"prev\"") && !links_of(100_000).contains("rel=\"next\""));
    }

    #[test]
    fn links_name_the_neighbours_that_exist() {
        assert_eq!(
            links(Page { limit: 2, offset: 2 }, 5),
            "</users?limit=2&offset=0>; rel=\"first\", </users?limit=2&offset=0>; rel=\"prev\", \
             </users?limit=2&offset=4>; rel=\"next\", </users?limit=2&offset=4>; rel=\"last\""
        );
        assert_eq!(
            links(Page { limit: 100, offset: 0 }, 0),
            "</users?limit=100&offset=0>; rel=\"first\", </users?limit=100&offset=0>; rel=\"last\""
        );
    }
}
