//! Why the service cannot start, or stops unexpectedly.

use std::io;
use std::net::SocketAddr;

use tokio::task::JoinError;

use crate::database::schema::SchemaError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("cannot listen on {address} (set PORT for another port)")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot start the threads that hash passwords")]
    Threads(#[source] io::Error),
    #[error("cannot write the OpenAPI document")]
    OpenApi(#[from] serde_json::Error),
    #[error("cannot bring the schema up to date")]
    Schema(#[from] SchemaError),
    #[error("the {0} stopped unexpectedly")]
    TaskEnded(&'static str),
    #[error("the {0} failed")]
    TaskFailed(&'static str, #[source] JoinError),
}
