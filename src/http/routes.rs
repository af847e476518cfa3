//! Properties of routes that the layers need before and after the handler runs.

use axum::http::HeaderValue;

/// Properties of a route, by its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Machines poll it every few seconds, so its successes are logged at DEBUG only.
    pub is_probe: bool,
    /// `Cache-Control` of its responses, if the handler gives none.
    pub cache: Cache,
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

const USERS: Traits = Traits {
    is_probe: false,
    cache: Cache::Private,
};
const PROBE: Traits = Traits {
    is_probe: true,
    cache: Cache::Never,
};
/// The traits of pages, and of requests without a route.
const OTHER: Traits = Traits {
    is_probe: false,
    cache: Cache::Never,
};

/// Every route that the document describes. `tests` compares the two.
pub(crate) const DOCUMENTED: [(&str, Traits); 5] = [
    ("/users", USERS),
    ("/users/{id}", USERS),
    ("/health/live", PROBE),
    ("/health/ready", PROBE),
    ("/metrics", PROBE),
];

/// The traits of a route, or of no route. A scan of so few is faster than a hash lookup.
pub(crate) fn traits(template: Option<&str>) -> Traits {
    let documented = DOCUMENTED
        .iter()
        .find(|(documented, _)| Some(*documented) == template);
    documented.map_or(OTHER, |(_, traits)| *traits)
}
