//! The routes of users: extract, call the use case, respond.

mod dto;
#[cfg(test)]
mod tests;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::dto::UserBody;
pub(crate) use self::dto::{CreateUser, PatchUser, UpdateUser, describe_limits};
use super::entity_tag::entity_tag;
use super::extract::call::Call;
use super::extract::client::Sender;
use super::extract::json::Body;
use super::extract::precondition::{ChangePrecondition, PreconditionHeaders, ReadPrecondition};
use super::layers::credential::Scoped;
use super::layers::deadline::Deadline;
use super::layers::head::HeadRules;
use super::problem::Problem;
use super::problem::responses::{Fallible, Problems};
use super::problem::types::USER_NOT_FOUND;
use super::state::AppState;
use crate::domain::page::Page;
use crate::domain::user::{User, UserId};

/// Header of a list response: the number of all users.
pub(crate) const TOTAL_COUNT: HeaderName = HeaderName::from_static("x-total-count");

type CreateProblems = Problems<(Call, Body<CreateUser>, Write, Scoped, HeadRules)>;
type ListProblems = Problems<(Call<Page>, Read, Scoped, HeadRules)>;
type GetProblems = Problems<(Call, ReadPrecondition, UserPath, Read, Scoped, HeadRules)>;
type UpdateProblems = ChangeProblems<(Call, Body<UpdateUser>)>;
type PatchProblems = ChangeProblems<(Call, Body<PatchUser>)>;
type DeleteProblems = ChangeProblems<Call>;
type ChangeProblems<Input> = Problems<(
    Input,
    ChangePrecondition,
    UserPath,
    Write,
    Scoped,
    HeadRules,
)>;

/// A use case that reads.
struct Read;

impl Fallible for Read {
    fn problems() -> Vec<Problem> {
        let mut problems = vec![
            Problem::database_unavailable(),
            Problem::overloaded(),
            Problem::internal(),
        ];
        problems.extend(Deadline::problems());
        problems
    }
}

/// A use case that writes.
struct Write;

impl Fallible for Write {
    fn problems() -> Vec<Problem> {
        let mut problems = Read::problems();
        problems.push(Problem::database_read_only());
        problems
    }
}

pub(crate) fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, update, patch, delete))
}

/// Create a user
///
/// Publishes `user.created`.
#[utoipa::path(
    post, path = "/users", tag = "users", operation_id = "create_user",
    request_body(content = CreateUser, example = json!({"name": "Иван", "surname": "Иванов", "password": "secret123"})),
    responses((status = 201, description = "The user as stored", body = UserBody, headers(
        ("Location" = String, description = "Path of the new user"),
        ("ETag" = String, description = "The user's entity tag"),
    )), CreateProblems)
)]
async fn create(
    State(state): State<AppState>,
    sender: Sender,
    call: Call,
    Body(request): Body<CreateUser>,
) -> Result<impl IntoResponse, Problem> {
    let user = state
        .users
        .create(request.into(), call.context, sender.into_caller())
        .await?;
    let location = [(header::LOCATION, format!("/users/{}", user.id))];
    Ok((StatusCode::CREATED, location, tagged(&user)))
}

/// List users
///
/// In the order of their ids, a page at a time.
#[utoipa::path(
    get, path = "/users", tag = "users", operation_id = "list_users",
    params(
        ("limit" = Option<i64>, Query, description = "Users in a page", minimum = 1, maximum = 100, example = 100),
        ("offset" = Option<i64>, Query, minimum = 0, maximum = 100_000, example = 0,
            description = "Users to skip before the page; a cursor for pages beyond the largest offset is planned"),
    ),
    responses((
        status = 200, description = "One page of users", body = Vec<UserBody>,
        headers(
            ("X-Total-Count" = i64, description = "Number of all users"),
            ("Link" = String, description = "Pages `first`, `prev`, `next`, `last` (RFC 8288)"),
        )
    ), ListProblems)
)]
async fn list(
    State(state): State<AppState>,
    Call { query: page, .. }: Call<Page>,
) -> Result<impl IntoResponse, Problem> {
    let listed = state.users.list(page).await?;
    let total = listed.page.total;
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (TOTAL_COUNT, total.to_string()),
        (header::LINK, links(page, total)),
    ];
    Ok((headers, listed.body(list_body)))
}

fn list_body(users: &[User]) -> Bytes {
    let users: Vec<_> = users.iter().map(UserBody::from).collect();
    // Numbers and text only: serializing a user cannot fail.
    serde_json::to_vec(&users).unwrap_or_default().into()
}

fn user_body(user: &User) -> Json<UserBody<'_>> {
    Json(UserBody::from(user))
}

/// The user, with its entity tag.
fn tagged(user: &User) -> Response {
    let tag = [(header::ETAG, entity_tag(user.version))];
    (tag, user_body(user)).into_response()
}

fn links(page: Page, total: i64) -> String {
    let neighbours = [
        ("first", Some(page.first())),
        ("prev", page.previous(total)),
        ("next", page.next(total)),
        ("last", page.last(total)),
    ];
    let link = |(relation, page): (&str, Option<Page>)| {
        let limit = page?.limit();
        let offset = page?.offset();
        Some(format!(
            "</users?limit={limit}&offset={offset}>; rel=\"{relation}\""
        ))
    };
    neighbours
        .into_iter()
        .filter_map(link)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Get a user
#[utoipa::path(
    get, path = "/users/{id}", tag = "users", operation_id = "get_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1), PreconditionHeaders),
    responses(
        (status = 200, description = "The user", body = UserBody, headers(("ETag" = String, description = "The user's entity tag"))),
        (status = 304, description = "The user's entity tag is in `If-None-Match`", headers(("ETag" = String, description = "The user's entity tag"))),
        GetProblems,
    )
)]
async fn get(
    State(state): State<AppState>,
    id: UserPath,
    _: Call,
    ReadPrecondition(precondition): ReadPrecondition,
) -> Result<Response, Problem> {
    let user = state.users.get(id.0).await?;
    let version = Some(user.version);
    if !precondition.allows(version) {
        return Err(Problem::precondition_failed(version));
    }
    if precondition.refuses(version) {
        let tag = [(header::ETAG, entity_tag(user.version))];
        return Ok((StatusCode::NOT_MODIFIED, tag).into_response());
    }
    Ok(tagged(&user))
}

/// Update a user
///
/// Partial: a field that is absent or null stays as it is. Publishes `user.updated`, unless nothing
/// changes; a password that is given always counts as a change. The response has no `ETag`, because
/// RFC 9110 forbids it after a partial PUT; the tag is `version` in quotes.
#[utoipa::path(
    put, path = "/users/{id}", tag = "users", operation_id = "update_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1), PreconditionHeaders),
    request_body(content = UpdateUser, example = json!({"name": "Петр", "surname": "Петров"})),
    responses((status = 200, description = "The user as stored", body = UserBody), UpdateProblems)
)]
async fn update(
    State(state): State<AppState>,
    sender: Sender,
    id: UserPath,
    call: Call,
    ChangePrecondition(precondition): ChangePrecondition,
    Body(request): Body<UpdateUser>,
) -> Result<Response, Problem> {
    let caller = sender.into_caller();
    let users = &state.users;
    let user = users.update(id.0, request.into(), precondition, call.context, caller);
    Ok(user_body(&user.await?).into_response())
}

/// Patch a user
///
/// Like PUT, by a JSON merge patch (RFC 7396): an absent field stays as it is. Null is an error,
/// because no field can be removed. Publishes `user.updated`, unless nothing changes; a password that
/// is given always counts as a change.
#[utoipa::path(
    patch, path = "/users/{id}", tag = "users", operation_id = "patch_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1), PreconditionHeaders),
    request_body(content = PatchUser, content_type = "application/merge-patch+json", example = json!({"surname": "Кузнецов"})),
    responses(
        (status = 200, description = "The user as stored", body = UserBody, headers(("ETag" = String, description = "The user's entity tag"))),
        PatchProblems,
    )
)]
async fn patch(
    State(state): State<AppState>,
    sender: Sender,
    id: UserPath,
    call: Call,
    ChangePrecondition(precondition): ChangePrecondition,
    Body(request): Body<PatchUser>,
) -> Result<Response, Problem> {
    let caller = sender.into_caller();
    let users = &state.users;
    let user = users.update(id.0, request.into(), precondition, call.context, caller);
    Ok(tagged(&user.await?))
}

/// Delete a user
///
/// Publishes `user.deleted`.
#[utoipa::path(
    delete, path = "/users/{id}", tag = "users", operation_id = "delete_user",
    params(("id" = i64, Path, description = "The user's id", minimum = 1, example = 1), PreconditionHeaders),
    responses((status = 204, description = "The user is gone"), DeleteProblems)
)]
async fn delete(
    State(state): State<AppState>,
    id: UserPath,
    call: Call,
    ChangePrecondition(precondition): ChangePrecondition,
) -> Result<impl IntoResponse, Problem> {
    state.users.delete(id.0, precondition, call.context).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The id in the path. Anything that is not an id is a 404.
struct UserPath(UserId);

impl Fallible for UserPath {
    fn problems() -> Vec<Problem> {
        vec![Problem::user_not_found()]
    }
}

impl<S: Send + Sync> FromRequestParts<S> for UserPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let raw = Path::<String>::from_request_parts(parts, state).await.ok();
        let id = raw.and_then(|Path(raw)| UserId::parse(&raw));
        id.map(Self)
            .ok_or_else(|| Problem::new(&USER_NOT_FOUND, "A user's id is a positive whole number."))
    }
}
