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
    /// Callers whose credential has the scope of the method. A method that the route does not take
    /// is refused to others as such.
    Scoped(&'static [(&'static str, Scope)]),
}

impl Traits {
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
    }
}

const fn probe(audience: Audience) -> Traits {
    Traits {
        is_probe: true,
        cache: Cache::Never,
        audience,
    }
}

const PAGE: Traits = Traits {
    is_probe: false,
    cache: Cache::Never,
    audience: Audience::Everyone,
};
/// Without a route: closed, so that nobody learns which paths there are.
const NO_ROUTE: Traits = Traits {
    is_probe: false,
    cache: Cache::Never,
    audience: Audience::Scoped(&[]),
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
            ("DELETE", Scope::UsersWrite),
        ]),
    ),
    ("/health/live", probe(Audience::Everyone)),
    ("/health/ready", probe(Audience::Everyone)),
    (
        "/metrics",
        probe(Audience::Scoped(&[("GET", Scope::MetricsRead)])),
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
const PAGES: [&str; 9] = [
    HOME,
    DOCS_FILE,
    OPENAPI_PATH,
    "/",
    "/docs",
    ERROR_PAGES,
    ERROR_PAGE,
    LICENSE_PATH,
    BELOW_DOCS,
];

/// The traits of a route, or of no route. A scan of so few is faster than a hash lookup.
pub(crate) fn traits(template: Option<&str>) -> Traits {
    let Some(template) = template else {
        return NO_ROUTE;
    };
    let documented = DOCUMENTED.iter().find(|(known, _)| *known == template);
    match documented {
        Some((_, traits)) => *traits,
        None if PAGES.contains(&template) => PAGE,
        None => NO_ROUTE,
    }
}
