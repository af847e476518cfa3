//! Identifies the client of a request, so that clients take turns for scarce resources.

use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use listener::Peer;

use crate::http::state::AppState;
use crate::service::users::Caller;

/// The client of a request.
pub(crate) struct Client {
    address: Option<IpAddr>,
    peer: Option<Peer>,
}

impl FromRequestParts<AppState> for Client {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &AppState,
    ) -> Result<Self, Self::Rejection> {
        let address = state.head.client(&parts.extensions, &parts.headers);
        Ok(Self {
            address,
            peer: parts.extensions.get::<Peer>().cloned(),
        })
    }
}

impl Client {
    pub(crate) fn into_caller(self) -> Caller<impl Future<Output = ()>> {
        let Self { address, peer } = self;
        let gone = async move {
            match peer {
                Some(peer) => peer.hung_up().await,
                None => std::future::pending().await,
            }
        };
        Caller { address, gone }
    }
}
