//! What the layers must know of a route before and after its handler runs.

use axum::http::HeaderValue;

/// Properties of a route, by its template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Asked every few seconds by machines: its successes say nothing new.
    pub is_probe: bool,
    /// `Cache-Control` of its responses, if the handler gives none.
    pub cache: Cache,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Nobody stores it.
    Never,
    /// The client may, and asks each time whether it is still so. Shared caches do not.
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
/// Of pages, and where there is no route.
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

/// Those of a route, or of none. A scan of so few is quicker than a hash.
pub(crate) fn traits(template: Option<&str>) -> Traits {
    let documented = DOCUMENTED
        .iter()
        .find(|(documented, _)| Some(*documented) == template);
    documented.map_or(OTHER, |(_, traits)| *traits)
}
