//! `http_request_duration_seconds`. Each combination of method, route and status is looked up by
//! name once, then recorded through its handle.

use std::collections::HashMap;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use metrics::Histogram;
use parking_lot::RwLock;

use crate::monitoring::catalogue;

/// Handles by route template, for each method and status.
type Handles = HashMap<(&'static str, StatusCode), HashMap<String, Histogram>>;

#[derive(Default)]
pub(crate) struct RequestDurations(RwLock<Handles>);

impl RequestDurations {
    /// `route` is a template, not a path, to keep the number of label values small.
    pub(crate) fn record(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let key = (known(method), status);
        let handles = self.0.read();
        if let Some(handle) = handles.get(&key).and_then(|routes| routes.get(route)) {
            handle.record(took);
            return;
        }
        drop(handles);
        let status = status.as_str().to_owned();
        let handle = catalogue::request_duration(key.0, route.to_owned(), status);
        handle.record(took);
        self.0
            .write()
            .entry(key)
            .or_default()
            .insert(route.to_owned(), handle);
    }
}

/// Made-up methods share one label value.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}
