//! Drains unread request bodies, so that a client that sends its whole body before it reads gets a
//! response rather than a broken connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// Time limit for reading and discarding the rest of a body while the response is sent.
const LONGEST: Duration = Duration::from_secs(2);

/// The request, with a body that is drained if it is dropped before its end.
pub(crate) fn on_drop(request: Request, tasks: &TaskTracker) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    // A client that waits for `100 Continue` has sent no body, and sends none after the response.
    let client_waits = request.headers().contains_key(header::EXPECT);
    let tasks = tasks.clone();
    request.map(|body| {
        Body::new(Drained {
            rest: Some(body),
            client_waits,
            tasks,
        })
    })
}

struct Drained {
    /// `None` once it has ended.
    rest: Option<Body>,
    client_waits: bool,
    tasks: TaskTracker,
}

impl HttpBody for Drained {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Polling the body sends `100 Continue`.
        self.client_waits = false;
        let Some(body) = &mut self.rest else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.rest = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.rest
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let rest = self
            .rest
            .take()
            .filter(|rest| !rest.is_end_stream() && !self.client_waits);
        if let Some(mut rest) = rest {
            self.tasks.spawn(timeout(LONGEST, async move {
                while let Some(Ok(_)) = rest.frame().await {}
            }));
        }
    }
}
