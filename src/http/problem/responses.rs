//! The problems of a route, as a type: each part of a route declares the problems that it returns,
//! and the OpenAPI document lists exactly those.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use utoipa::IntoResponses;
use utoipa::openapi::example::{Example, ExampleBuilder};
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{ContentBuilder, Ref, RefOr};

use super::body::{NOT_READY_SCHEMA, PROBLEM_SCHEMA};
use super::{PROBLEM_JSON, Problem};

/// Headers of single problems, as the document names them.
const DOCUMENTED_HEADERS: [&str; 3] = ["Accept-Patch", "ETag", "WWW-Authenticate"];
/// Trace id of the examples.
const TRACE_ID: &str = "0b8f3a52-7c1d-4e5f-9a6b-2d4c8e1f7a93";

/// A part of a route that can refuse a request or fail: an extractor, a layer, a use case.
pub(crate) trait Fallible {
    /// One problem of each type, made by the same code as for a client. Swagger UI shows the first
    /// of each status.
    fn problems() -> Vec<Problem>;
}

/// The problems of a route that is made of these parts.
pub(crate) struct Problems<Parts>(PhantomData<Parts>);

macro_rules! fallible_together {
    ($($part:ident)+) => {
        impl<$($part: Fallible),+> Fallible for ($($part,)+) {
            fn problems() -> Vec<Problem> {
                let mut all = Vec::new();
                $(all.extend($part::problems());)+
                all
            }
        }
    };
}

fallible_together!(A B);
fallible_together!(A B C);
fallible_together!(A B C D);
fallible_together!(A B C D E);
fallible_together!(A B C D E F);
fallible_together!(A B C D E F G);

impl<Parts: Fallible> IntoResponses for Problems<Parts> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut by_status: BTreeMap<_, Vec<Problem>> = BTreeMap::new();
        for problem in Parts::problems() {
            let same = by_status.entry(problem.kind.status).or_default();
            if same.iter().all(|other| other.kind != problem.kind) {
                same.push(problem);
            }
        }
        by_status
            .into_iter()
            .map(|(status, problems)| (status.as_str().to_owned(), response(&problems).into()))
            .collect()
    }
}

/// The response of one status.
fn response(problems: &[Problem]) -> Response {
    let description: Vec<_> = problems
        .iter()
        .map(|problem| format!("{} (`{}`)", problem.kind.title, problem.kind.code))
        .collect();
    let schema = if problems.iter().any(|problem| problem.members.is_some()) {
        NOT_READY_SCHEMA
    } else {
        PROBLEM_SCHEMA
    };
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name(schema)))
        .examples_from_iter(problems.iter().map(example))
        .build();
    let mut response = ResponseBuilder::new()
        .description(description.join("; "))
        .content(PROBLEM_JSON, content)
        .build();
    let mut add_header = |name: &str| {
        let header = Ref::new(format!("#/components/headers/{name}"));
        response.headers.insert(name.to_owned(), RefOr::Ref(header));
    };
    if problems
        .iter()
        .any(|problem| problem.kind.retry_after.is_some())
    {
        add_header("Retry-After");
    }
    for name in DOCUMENTED_HEADERS {
        let has_it = |problem: &Problem| {
            let headers = problem.headers.as_ref();
            headers.is_some_and(|headers| headers.contains_key(name))
        };
        if problems.iter().any(has_it) {
            add_header(name);
        }
    }
    response
}

/// The document sets `instance`, which is the path of the operation.
fn example(problem: &Problem) -> (String, Example) {
    let value = serde_json::to_value(problem.body(String::new(), TRACE_ID)).ok();
    let example = ExampleBuilder::new()
        .summary(problem.kind.title)
        .value(value)
        .build();
    (problem.kind.code.to_owned(), example)
}
