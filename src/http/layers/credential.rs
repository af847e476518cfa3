//! Who makes a request: the credential of its head, looked at before its route is known and its body
//! read, so that nobody learns from the service what they may not use.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};

use crate::access::{Access, Credential, Refusal};
use crate::domain::scope::Scope;
use crate::http::problem::Problem;
use crate::http::problem::responses::Fallible;
use crate::http::problem::types::{
    BAD_REQUEST, INSUFFICIENT_SCOPE, INVALID_TOKEN, UNAUTHENTICATED,
};
use crate::http::routes::{Audience, Traits};
use crate::monitoring::catalogue;

/// Of `WWW-Authenticate`. <https://www.rfc-editor.org/rfc/rfc6750#section-3>
const CHALLENGE: &str = r#"Bearer realm="user-management-api""#;

/// Adds the [`Actor`](crate::domain::actor::Actor) to the request, if it shows a key.
///
/// # Errors
/// 400, 401, 403 or 503, with the reason.
pub(crate) async fn check(
    request: &mut Request,
    traits: Traits,
    access: &Access,
) -> Result<(), Problem> {
    if traits.audience == Audience::Everyone {
        return Ok(());
    }
    let credential = credential(request.headers())?;
    let identity = access.identify(credential).await.map_err(refused)?;
    if let Some(actor) = &identity.actor {
        request.extensions_mut().insert(actor.clone());
    }
    if let Some(scope) = traits.scope(request.method()) {
        identity.require(scope).map_err(refused)?;
    }
    Ok(())
}

fn credential(headers: &HeaderMap) -> Result<Credential<'_>, Problem> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = given.next() else {
        return Ok(Credential::Missing);
    };
    if given.next().is_some() {
        let detail = "There is more than one Authorization header.";
        return Err(Problem::new(&BAD_REQUEST, detail));
    }
    let value = value.as_bytes();
    let end = value.iter().position(|byte| *byte == b' ');
    let (scheme, token) = value.split_at(end.unwrap_or(value.len()));
    if scheme.eq_ignore_ascii_case(b"Bearer") {
        Ok(Credential::Token(trim_spaces(token)))
    } else {
        Ok(Credential::Missing)
    }
}

fn refused(refusal: Refusal) -> Problem {
    let reason = match refusal {
        Refusal::KeysUnread => None,
        Refusal::Unauthenticated => Some("missing"),
        Refusal::InvalidToken => Some("invalid"),
        Refusal::ExpiredToken => Some("expired"),
        Refusal::InsufficientScope(_) => Some("scope"),
    };
    if let Some(reason) = reason {
        catalogue::auth_failures(reason).increment(1);
    }
    problem(refusal)
}

fn trim_spaces(token: &[u8]) -> &[u8] {
    let start = token.iter().take_while(|byte| **byte == b' ').count();
    let token = &token[start..];
    let end = token.iter().rev().take_while(|byte| **byte == b' ').count();
    &token[..token.len() - end]
}

fn problem(refusal: Refusal) -> Problem {
    let (kind, detail, error) = match refusal {
        Refusal::KeysUnread => return Problem::keys_unread(),
        Refusal::Unauthenticated => (
            &UNAUTHENTICATED,
            "Send an API key: Authorization: Bearer TOKEN.",
            String::new(),
        ),
        Refusal::InvalidToken => (
            &INVALID_TOKEN,
            "The token is not valid.",
            r#", error="invalid_token""#.to_owned(),
        ),
        Refusal::ExpiredToken => (
            &INVALID_TOKEN,
            "The token has expired.",
            r#", error="invalid_token""#.to_owned(),
        ),
        Refusal::InsufficientScope(scope) => (
            &INSUFFICIENT_SCOPE,
            "The key does not have the scope that this request needs.",
            format!(
                r#", error="insufficient_scope", scope="{}""#,
                scope.as_str()
            ),
        ),
    };
    let challenge = HeaderValue::try_from(format!("{CHALLENGE}{error}"));
    let challenge = challenge.unwrap_or(HeaderValue::from_static(CHALLENGE));
    Problem::new(kind, detail).with_header(header::WWW_AUTHENTICATE, challenge)
}

/// What a route can answer that is not open to all.
pub(crate) struct Scoped;

impl Fallible for Scoped {
    fn problems() -> Vec<Problem> {
        [
            Refusal::Unauthenticated,
            Refusal::InvalidToken,
            Refusal::InsufficientScope(Scope::UsersWrite),
        ]
        .map(problem)
        .into()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue, header};

    use super::{Credential, credential};

    fn of(values: &[&'static str]) -> &'static str {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        match credential(&headers) {
            Ok(Credential::Missing) => "missing",
            Ok(Credential::Token(b"t")) => "t",
            Ok(Credential::Token(_)) => "another token",
            Err(problem) => problem.kind.code,
        }
    }

    #[test]
    fn a_bearer_token_is_read_in_any_case_and_after_any_spaces() {
        for value in ["Bearer t", "bearer t", "BEARER   t", "Bearer t "] {
            assert_eq!(of(&[value]), "t", "{value:?}");
        }
        assert_eq!(of(&[]), "missing");
        for value in ["Basic dDp0", "t", "Bearert", ""] {
            assert_eq!(of(&[value]), "missing", "{value:?}");
        }
        for value in ["Bearer", "Bearer ", "Bearer t t"] {
            assert_eq!(of(&[value]), "another token", "{value:?}");
        }
        assert_eq!(of(&["Bearer t", "Bearer t"]), "bad_request");
    }
}
