//! `healthcheck`: asks the service that has the same settings whether it is ready, for containers
//! without curl.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::AnyError;

/// Time limit for the whole check; Docker allows 5 s.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Checks readiness.
///
/// # Errors
/// If the service is not ready, unreachable, or silent for four seconds.
pub(crate) async fn run(address: SocketAddr) -> Result<(), AnyError> {
    let status = timeout(TIMEOUT, get_status(address, "/health/ready")).await??;
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("http://{address}/health/ready answered {status}").into())
    }
}

async fn get_status(address: SocketAddr, path: &str) -> Result<StatusCode, AnyError> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Body::empty())?;
    let status = sender.send_request(request).await?.status();
    connection.abort();
    Ok(status)
}
