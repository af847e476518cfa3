//! Identifies the client of a request, so that clients take turns for scarce resources.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use listener::Peer;

use crate::domain::actor::Client;
use crate::http::state::AppState;
use crate::service::users::Caller;

/// The client of a request, and its connection.
pub(crate) struct Sender {
    client: Client,
    peer: Option<Peer>,
}

impl FromRequestParts<AppState> for Sender {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AppState,
    ) -> Result<Self, Self::Rejection> {
        Ok(Self {
            client: state.head.client(&parts.extensions, &parts.headers),
            peer: parts.extensions.get::<Peer>().cloned(),
        })
    }
}

impl Sender {
    pub(crate) fn into_caller(self) -> Caller<impl Future<Output = ()>> {
        let Self { client, peer } = self;
        let gone = async move {
            match peer {
                Some(peer) => peer.hung_up().await,
                None => std::future::pending().await,
            }
        };
        Caller { client, gone }
    }
}
