//! Properties of routes that the layers need before and after the handler runs.

use axum::http::{HeaderValue, Method};

use super::problem::ERROR_PAGES;
use crate::domain::scope::Scope;

/// Properties of a route, by its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Machines poll it every few seconds, so its successes are logged at DEBUG only.
    pub is_probe: bool,
    /// `Cache-Control` of its responses, if the handler gives none.
    pub cache: Cache,
    pub audience: Audience,
    /// Where there is a port for operators, no other port has the route.
    pub is_for_operators: bool,
}

/// The port that a request comes in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// There is no other.
    Only,
    /// Beside one for operators.
    Public,
    Operators,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// No cache stores it.
    Never,
    /// The client may store it, and revalidates it each time. Shared caches may not store it.
    Private,
}

impl Cache {
    pub(crate) const fn header(self) -> HeaderValue {
        match self {
            Self::Never => HeaderValue::from_static("no-store"),
            Self::Private => HeaderValue::from_static("private, no-cache"),
        }
    }
}

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    Everyone,
    /// Callers with the scope of the method. A method that is not listed needs a caller that is let
    /// in, who then learns that the route does not take it.
    Scoped(&'static [(&'static str, Scope)]),
}

impl Traits {
    /// `None` if the route is not to be had at this entrance.
    pub(crate) const fn at(self, entrance: Entrance) -> Option<Self> {
        match entrance {
            Entrance::Public if self.is_for_operators => None,
            // Who reaches this port may read the metrics.
            Entrance::Operators if self.is_probe => Some(Self {
                audience: Audience::Everyone,
                ..self
            }),
            Entrance::Only | Entrance::Public | Entrance::Operators => Some(self),
        }
    }

    /// What a request of this method needs. HEAD is a GET without a body.
    pub(crate) fn scope(&self, method: &Method) -> Option<Scope> {
        let Audience::Scoped(methods) = self.audience else {
            return None;
        };
        let method = match method.as_str() {
            "HEAD" => "GET",
            other => other,
        };
        let needed = methods.iter().find(|(name, _)| *name == method);
        needed.map(|(_, scope)| *scope)
    }
}

const fn users(methods: &'static [(&'static str, Scope)]) -> Traits {
    Traits {
        is_probe: false,
        cache: Cache::Private,
        audience: Audience::Scoped(methods),
        is_for_operators: false,
    }
}

const fn probe(audience: Audience) -> Traits {
    Traits {
        is_probe: true,
        cache: Cache::Never,
        audience,
        is_for_operators: false,
    }
}

const PAGE: Traits = Traits {
    is_probe: false,
    cache: Cache::Never,
    audience: Audience::Everyone,
    is_for_operators: true,
};
/// Problems link to it.
const PAGE_OF_ERRORS: Traits = Traits {
    is_for_operators: false,
    ..PAGE
};
/// Without a route: closed, so that nobody learns which paths there are.
pub(crate) const NO_ROUTE: Traits = Traits {
    is_probe: false,
    cache: Cache::Never,
    audience: Audience::Scoped(&[]),
    is_for_operators: false,
};

/// Every route that the document describes. `tests` compares the two.
pub(crate) const DOCUMENTED: [(&str, Traits); 5] = [
    (
        "/users",
        users(&[("GET", Scope::UsersRead), ("POST", Scope::UsersWrite)]),
    ),
    (
        "/users/{id}",
        users(&[
            ("GET", Scope::UsersRead),
            ("PUT", Scope::UsersWrite),
            ("PATCH", Scope::UsersWrite),
            ("DELETE", Scope::UsersWrite),
        ]),
    ),
    ("/health/live", probe(Audience::Everyone)),
    ("/health/ready", probe(Audience::Everyone)),
    (
        "/metrics",
        Traits {
            is_for_operators: true,
            ..probe(Audience::Scoped(&[("GET", Scope::MetricsRead)]))
        },
    ),
];

/// Path of the page that shows the API; with its slash, so that the page's links are relative.
pub(crate) const HOME: &str = "/docs/";
/// Path of the OpenAPI document.
pub(crate) const OPENAPI_PATH: &str = "/openapi.json";
/// Path of the license that the document names.
pub(crate) const LICENSE_PATH: &str = "/docs/license";
pub(crate) const DOCS_FILE: &str = "/docs/{file}";
pub(crate) const ERROR_PAGE: &str = "/docs/errors/{code}";
/// Whatever is further below `/docs`.
pub(crate) const BELOW_DOCS: &str = "/docs/{file}/{*path}";

/// The pages.
const PAGES: [(&str, Traits); 9] = [
    (HOME, PAGE),
    (DOCS_FILE, PAGE),
    (OPENAPI_PATH, PAGE),
    ("/", PAGE),
    ("/docs", PAGE),
    (ERROR_PAGES, PAGE_OF_ERRORS),
    (ERROR_PAGE, PAGE_OF_ERRORS),
    (LICENSE_PATH, PAGE),
    (BELOW_DOCS, PAGE),
];

/// The traits of a route, or of no route. A scan of so few is faster than a hash lookup.
pub(crate) fn traits(template: Option<&str>) -> Traits {
    let Some(template) = template else {
        return NO_ROUTE;
    };
    let mut known = DOCUMENTED.iter().chain(&PAGES);
    let known = known.find(|(known, _)| *known == template);
    known.map_or(NO_ROUTE, |(_, traits)| *traits)
}
