//! Preconditions: `If-Match` and `If-None-Match`.
//! <https://www.rfc-editor.org/rfc/rfc9110#section-13>

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AnyOfBuilder, ObjectBuilder, Type};

use crate::domain::precondition::{Precondition, Versions};
use crate::domain::user::Version;
use crate::http::entity_tag::{Comparison, ListError, read_list};
use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;
use crate::http::problem::types::BAD_REQUEST;
use crate::http::state::AppState;

/// A list of entity tags, as a client should send it; the service takes all that RFC 9110 allows.
const TAG_LIST: &str = r#"^(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*"){0,31}$"#;

/// The headers, for the document.
pub(crate) struct PreconditionHeaders;

impl IntoParams for PreconditionHeaders {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let header = |(name, description)| {
            let value = AnyOfBuilder::new()
                .schema_type(Type::String)
                .item(text().pattern(Some(TAG_LIST)))
                .item(text().enum_values(Some(["*"])));
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Header)
                .required(Required::False)
                .description(Some(description))
                .schema(Some(value))
                .build()
        };
        let headers = [
            (
                "If-Match",
                "Proceed only if the user's entity tag, the version in quotes, is in this list of at \
                 most 32 tags, such as `\"1\"`; `*` is any. Else 412",
            ),
            (
                "If-None-Match",
                "Proceed only if the user's entity tag is not in this list of at most 32 tags; `*` is \
                 any. Else 304 to GET and HEAD, 412 to a change",
            ),
        ];
        headers.map(header).into()
    }
}

/// The precondition of a read.
pub(crate) struct ReadPrecondition(pub Precondition);

impl<S: Send + Sync> FromRequestParts<S> for ReadPrecondition {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        precondition(&parts.headers).map(Self)
    }
}

impl Fallible for ReadPrecondition {
    fn problems() -> Vec<Problem> {
        let malformed = refused(&header::IF_MATCH, ListError::Malformed);
        let failed = Problem::precondition_failed(Some(Version::stored(2)));
        vec![malformed, failed]
    }
}

/// The precondition of a change. A setting requires `If-Match`.
pub(crate) struct ChangePrecondition(pub Precondition);

impl FromRequestParts<AppState> for ChangePrecondition {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let precondition = precondition(&parts.headers)?;
        if state.contract.require_if_match && precondition.one_of.is_none() {
            return Err(Problem::precondition_required());
        }
        Ok(Self(precondition))
    }
}

impl Fallible for ChangePrecondition {
    fn problems() -> Vec<Problem> {
        let mut problems = ReadPrecondition::problems();
        problems.push(Problem::precondition_required());
        problems
    }
}

fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    Ok(Precondition {
        one_of: versions(headers, &header::IF_MATCH, Comparison::Strong)?,
        none_of: versions(headers, &header::IF_NONE_MATCH, Comparison::Weak)?,
    })
}

fn versions(
    headers: &HeaderMap,
    name: &HeaderName,
    comparison: Comparison,
) -> Result<Option<Versions>, Problem> {
    if !headers.contains_key(name) {
        return Ok(None);
    }
    let versions = read_list(headers.get_all(name).iter(), comparison);
    versions.map(Some).map_err(|error| refused(name, error))
}

/// Never ignored: a change whose `If-Match` is ignored overwrites another.
fn refused(name: &HeaderName, error: ListError) -> Problem {
    let name = if *name == header::IF_MATCH {
        "If-Match"
    } else {
        "If-None-Match"
    };
    let detail = match error {
        ListError::Malformed => format!(
            "{name} is not a list of entity tags. Send the user's version in quotes, as in {name}: \
             \"1\", or * for any version."
        ),
        ListError::TooLong => format!("{name} has more than 32 entity tags."),
    };
    Problem::new(&BAD_REQUEST, detail)
}
