//! Bodies, queries and links, good and bad.

use axum::extract::FromRequestParts;
use axum::http::Request;

use super::dto::{CreateUser, PatchUser, UpdateUser};
use super::links;
use crate::domain::page::Page;
use crate::domain::password::PasswordPolicy;
use crate::domain::user::UserChanges;
use crate::http::extract::json::parse;
use crate::http::extract::query::Parameters;
use crate::http::problem::Problem;
use crate::http::problem::field_error::FieldErrorCode::{
    Blank, DuplicateField, InvalidType, OutOfRange, Repeated, Required, TooShort, UnknownField,
    UnknownParameter,
};
use crate::http::problem::field_error::{FieldErrorCode, MAX_FIELD_ERRORS};

const POLICY: PasswordPolicy = PasswordPolicy { min_chars: 8 };

fn refused(body: &str) -> Problem {
    match parse::<CreateUser>(body.as_bytes(), POLICY) {
        Err(problem) => problem,
        Ok(_) => panic!("{body} was taken"),
    }
}

fn faults(problem: &Problem) -> Vec<(&str, FieldErrorCode)> {
    problem
        .errors
        .iter()
        .map(|fault| (fault.pointer.as_deref().unwrap(), fault.code))
        .collect()
}

#[test]
fn every_error_of_a_body_is_named_in_one_response() {
    let problem = refused(r#"{"name":"","nmae":1,"password":"short","password":"again!"}"#);
    assert_eq!(
        faults(&problem),
        [
            ("/nmae", UnknownField),
            ("/password", DuplicateField),
            ("/name", Blank),
            ("/surname", Required),
            ("/password", TooShort)
        ]
    );
}

#[test]
fn unknown_and_repeated_fields_are_named_in_the_bodys_order() {
    let problem = refused(
        r#"{"surname":"Ли","surname":"Ли","x":1,"name":"A","password":"12345678","name":"B"}"#,
    );
    assert_eq!(
        faults(&problem),
        [
            ("/surname", DuplicateField),
            ("/x", UnknownField),
            ("/name", DuplicateField)
        ]
    );
}

#[test]
fn a_body_that_is_not_an_object_is_refused_as_such() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for body in [
        "[]",
        "1",
        "\"secret\"",
        "null",
        "true",
        &deep,
        &"9".repeat(500),
        " [1e999999] ",
    ] {
        let problem = refused(body);
        assert_eq!(
            (problem.kind.code, faults(&problem)),
            ("validation_failed", vec![("", InvalidType)]),
            "{body}"
        );
    }
}

#[test]
fn malformed_json_is_refused_without_being_repeated() {
    for body in [
        "",
        "{",
        r#"{"name":"secret"#,
        r#"{"name":"\ud800"}"#,
        r#"{"name":"\ud800","name":"x"}"#,
        r#"{"\ud800":1}"#,
        "{} {}",
        "secret",
        "\u{feff}{}",
        "[",
        "[nope",
        "truex",
        r#""secret" x"#,
        "1 2",
        "{\"name\":\"\n\"}",
        r#"{"x":"\x"}"#,
    ] {
        let problem = refused(body);
        assert_eq!(problem.kind.code, "malformed_json", "{body}");
        assert!(!problem.detail.contains("secret"), "{}", problem.detail);
    }
}

#[test]
fn a_field_that_is_not_text_is_refused_at_any_depth_and_length() {
    let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
    for value in [deep.as_str(), &"9".repeat(5_000), "1e999999", "{}", "true"] {
        let problem = refused(&format!(
            r#"{{"name":{value},"surname":"Ли","password":"12345678"}}"#
        ));
        assert_eq!(faults(&problem), [("/name", InvalidType)], "{value}");
    }
}

#[test]
fn a_thousand_unknown_fields_get_a_short_answer() {
    let body = (0..1000)
        .map(|n| format!(r#""{n}{}":0"#, "x".repeat(40)))
        .collect::<Vec<_>>()
        .join(",");
    let problem = refused(&format!("{{{body}}}"));
    assert!(problem.errors.len() <= MAX_FIELD_ERRORS);
}

#[test]
fn null_leaves_a_field_of_an_update_unchanged() {
    let update: UpdateUser = parse(r#"{"name":null,"surname":"Ли"}"#.as_bytes(), POLICY).unwrap();
    let changes = UserChanges::from(update);
    assert!(changes.name.is_none() && changes.password.is_none());
    assert_eq!(changes.surname.unwrap().as_str(), "Ли");
}

#[test]
fn null_is_an_error_in_a_patch_and_absence_leaves_a_field_unchanged() {
    let patch: PatchUser = parse(r#"{"surname":"Ли"}"#.as_bytes(), POLICY).unwrap();
    let changes = UserChanges::from(patch);
    assert!(changes.name.is_none() && changes.password.is_none());
    assert_eq!(changes.surname.unwrap().as_str(), "Ли");
    for body in [r#"{"name":null}"#, r#"{"name":"Ли","name":null}"#] {
        let Err(problem) = parse::<PatchUser>(body.as_bytes(), POLICY) else {
            panic!("{body} was taken");
        };
        assert!(faults(&problem).contains(&("/name", Required)), "{body}");
    }
}

fn page(limit: i64, offset: i64) -> Page {
    Page::new(limit, offset).unwrap()
}

async fn query(text: &str) -> Result<Page, Problem> {
    let request = Request::get(format!("/users?{text}")).body(()).unwrap();
    let parameters = Parameters::from_request_parts(&mut request.into_parts().0, &()).await;
    parameters.map(|Parameters(page)| page)
}

#[tokio::test]
async fn limits_and_offsets_in_range_are_accepted() {
    assert_eq!(query("").await.unwrap(), page(100, 0));
    assert_eq!(query("limit=%31&offset=0").await.unwrap(), page(1, 0));
    assert_eq!(query("offset=100000").await.unwrap().offset(), 100_000);
}

#[tokio::test]
async fn every_other_query_parameter_is_refused_by_name() {
    for (text, code) in [
        ("limit=0", OutOfRange),
        ("limit=101", OutOfRange),
        ("limit=", OutOfRange),
        ("limit=+5", OutOfRange),
        ("limit=ten", OutOfRange),
        ("offset=-1", OutOfRange),
        ("offset=100001", OutOfRange),
        ("offset=99999999999999999999", OutOfRange),
        ("limit=1&limit=1", Repeated),
        ("page=1", UnknownParameter),
        ("Limit=1", UnknownParameter),
    ] {
        let problem = query(text).await.unwrap_err();
        assert_eq!(
            (problem.kind.code, problem.errors[0].code),
            ("invalid_query", code),
            "{text}"
        );
    }
}

#[test]
fn pages_past_the_largest_offset_have_no_link() {
    let links_of = |offset| links(page(100, offset), 1_000_000);
    assert!(links_of(0).contains("rel=\"next\"") && !links_of(0).contains("rel=\"last\""));
    assert!(
        links_of(100_000).contains("rel=\"prev\"") && !links_of(100_000).contains("rel=\"next\"")
    );
}

#[test]
fn links_name_the_neighbours_that_exist() {
    assert_eq!(
        links(page(2, 2), 5),
        "</users?limit=2&offset=0>; rel=\"first\", </users?limit=2&offset=0>; rel=\"prev\", \
         </users?limit=2&offset=4>; rel=\"next\", </users?limit=2&offset=4>; rel=\"last\""
    );
    assert_eq!(
        links(page(100, 0), 0),
        "</users?limit=100&offset=0>; rel=\"first\", </users?limit=100&offset=0>; rel=\"last\""
    );
}
