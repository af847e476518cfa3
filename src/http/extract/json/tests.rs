//! Bodies, good and bad.

use super::{PasswordPolicy, Problem, parse};

const POLICY: PasswordPolicy = PasswordPolicy { min_chars: 8 };

fn refused(body: &str) -> Problem {
    match parse(body.as_bytes()).map(|fields| fields.into_new_user(POLICY)) {
        Err(problem) | Ok(Err(problem)) => problem,
        Ok(Ok(user)) => panic!("{body} was taken as {user:?}"),
    }
}

fn faults(problem: &Problem) -> Vec<(&str, &str)> {
    problem.errors.iter().map(|fault| (fault.pointer.as_deref().unwrap(), fault.code.as_ref())).collect()
}

#[test]
fn every_fault_of_a_body_is_named_at_once() {
    let problem = refused(r#"{"name":"","nmae":1,"password":"short","password":"again!"}"#);
    assert_eq!(
        faults(&problem),
        [
            ("/nmae", "unknown_field"),
            ("/password", "duplicate_field"),
            ("/name", "blank"),
            ("/surname", "required"),
            ("/password", "too_short")
        ]
    );
}

#[test]
fn what_is_no_object_is_refused_as_such() {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for body in ["[]", "1", "\"secret\"", "null", "true", &deep, &"9".repeat(500), " [1e999999] "] {
        let problem = refused(body);
        assert_eq!((problem.kind.code, faults(&problem)), ("validation_failed", vec![("", "invalid_type")]), "{body}");
    }
}

#[test]
fn what_is_no_json_is_refused_without_being_repeated() {
    for body in [
        "",
        "{",
        r#"{"name":"secret"#,
        r#"{"name":"\ud800"}"#,
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
fn a_field_that_is_no_text_is_refused_however_deep_or_long() {
    let deep = format!("{}{}", "[".repeat(130), "]".repeat(130));
    for value in [deep.as_str(), &"9".repeat(5_000), "1e999999", "{}", "true"] {
        let problem = refused(&format!(r#"{{"name":{value},"surname":"Ли","password":"12345678"}}"#));
        assert_eq!(faults(&problem), [("/name", "invalid_type")], "{value}");
    }
}

#[test]
fn a_thousand_unknown_fields_get_a_short_answer() {
    let body = (0..1000).map(|n| format!(r#""{n}{}":0"#, "x".repeat(40))).collect::<Vec<_>>().join(",");
    let problem = refused(&format!("{{{body}}}"));
    assert!(problem.errors.len() <= super::MAX_FIELD_ERRORS);
}

#[test]
fn null_leaves_a_field_of_an_update_as_it_is() {
    let changes = parse(r#"{"name":null,"surname":"Ли"}"#.as_bytes()).unwrap().into_changes(POLICY).unwrap();
    assert!(changes.name.is_none() && changes.password.is_none());
    assert_eq!(changes.surname.unwrap().as_str(), "Ли");
}
