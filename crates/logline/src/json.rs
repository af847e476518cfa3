//! The log line of the original Python service: one flat JSON object, `event`, `level`,
//! `timestamp`, `trace_id`, then the line's own fields.
//!
//! Replaces the layer of `tracing_subscriber::fmt`, which copies each line through two more
//! buffers.

use std::cell::RefCell;
use std::io::Write;
use std::{fmt, mem};

use serde::{Serialize, Serializer};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

/// Largest buffer that a thread keeps for its next line, in bytes.
const LARGEST_KEPT: usize = 64 << 10;

thread_local! {
    /// Reused for every line.
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

#[derive(Default)]
struct Buffers {
    line: Vec<u8>,
    fields: Vec<u8>,
}

/// Writes each event as a line, with one call of its writer.
pub struct JsonLines<W, T> {
    writer: W,
    now: fn() -> T,
}

impl<W, T> JsonLines<W, T> {
    /// `now` gives each line's `timestamp`.
    pub const fn new(writer: W, now: fn() -> T) -> Self {
        Self { writer, now }
    }
}

/// A span's fields as they appear in a line, `,"name":value` each; kept in the span's extensions.
struct SpanFields(Vec<u8>);

impl<S, W, T> Layer<S> for JsonLines<W, T>
where
    T: Serialize + 'static,
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> MakeWriter<'writer> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Vec::new();
            attributes.record(&mut Members {
                message: None,
                fields: &mut fields,
            });
            span.extensions_mut().insert(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        // Format before locking the span's extensions, because formatting may itself log a line.
        let mut added = Vec::new();
        values.record(&mut Members {
            message: None,
            fields: &mut added,
        });
        if let Some(span) = context.span(id)
            && let Some(SpanFields(fields)) = span.extensions_mut().get_mut()
        {
            fields.extend(added);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // Taken out, because formatting a value may itself log a line.
        let mut buffers = BUFFERS.take();
        write_line(
            &mut buffers,
            event,
            context.event_scope(event),
            &(self.now)(),
        );
        // An error cannot be reported: the log itself has failed.
        _ = self
            .writer
            .make_writer_for(event.metadata())
            .write_all(&buffers.line);
        buffers.line.clear();
        buffers.fields.clear();
        buffers.line.shrink_to(LARGEST_KEPT);
        buffers.fields.shrink_to(LARGEST_KEPT);
        BUFFERS.set(buffers);
    }
}

fn write_line<'s, S>(
    Buffers { line, fields }: &mut Buffers,
    event: &Event<'_>,
    scope: Option<Scope<'s, S>>,
    timestamp: &impl Serialize,
) where
    S: Subscriber + LookupSpan<'s>,
{
    line.extend_from_slice(b"{\"event\":");
    let head = line.len();
    event.record(&mut Members {
        message: Some(line),
        fields,
    });
    // A library's line may have no message.
    if line.len() == head {
        line.extend_from_slice(b"\"\"");
    }
    line.extend_from_slice(b",\"level\":\"");
    line.extend_from_slice(name(*event.metadata().level()).as_bytes());
    line.extend_from_slice(b"\",\"timestamp\":");
    write_value(line, timestamp);
    for span in scope.into_iter().flatten() {
        if let Some(SpanFields(of_span)) = span.extensions().get() {
            line.extend_from_slice(of_span);
        }
    }
    line.extend_from_slice(fields);
    line.extend_from_slice(b"}\n");
}

/// The level's name in the original service's log.
fn name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// A value that fails to serialize becomes `null`; the line stays valid.
fn write_value<T: Serialize + ?Sized>(line: &mut Vec<u8>, value: &T) {
    let start = line.len();
    if serde_json::to_writer(&mut *line, value).is_err() {
        line.truncate(start);
        line.extend_from_slice(b"null");
    }
}

/// Receives the fields of an event or a span.
struct Members<'line> {
    /// Taken by the first message: a line may have two.
    message: Option<&'line mut Vec<u8>>,
    fields: &'line mut Vec<u8>,
}

impl Members<'_> {
    fn member<T: Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        if field.name() == "message" {
            if let Some(line) = mem::take(&mut self.message) {
                write_value(line, value);
            }
            return;
        }
        self.fields.extend_from_slice(b",\"");
        self.fields.extend_from_slice(field.name().as_bytes());
        self.fields.extend_from_slice(b"\":");
        write_value(self.fields, value);
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.member(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, &Shown(value));
    }
}

/// A value formatted with `Debug`, straight into the line.
struct Shown<'a>(&'a dyn fmt::Debug);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:?}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing_subscriber::layer::SubscriberExt;

    use super::JsonLines;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(write: impl FnOnce()) -> (String, Value) {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = JsonLines::new(move || writer.clone(), || "2024-12-04T10:30:00.123Z");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    #[test]
    fn a_line_is_flat_with_the_original_keys_first() {
        let (text, line) = written(|| {
            let span = tracing::error_span!("request", trace_id = "t-1");
            span.in_scope(|| {
                tracing::info!(
                    method = "POST",
                    status_code = 201,
                    duration_ms = 1.5,
                    "Request started"
                );
            });
        });
        assert!(
            text.starts_with(r#"{"event":"Request started","level":"info","timestamp":""#),
            "{text}"
        );
        let mut expected = line.clone();
        let timestamp = line["timestamp"].as_str().unwrap();
        assert_eq!(timestamp.len(), "2024-12-04T10:30:00.123Z".len());
        expected.as_object_mut().unwrap().remove("timestamp");
        assert_eq!(
            expected,
            json!({"event": "Request started", "level": "info", "trace_id": "t-1", "method": "POST", "status_code": 201, "duration_ms": 1.5})
        );
    }

    #[test]
    fn a_line_with_two_messages_or_none_is_still_a_line() {
        let (_, line) = written(|| tracing::warn!(message = "first", "second"));
        assert!(line["event"].is_string(), "{line}");
        let (_, line) = written(|| tracing::warn!(count = 1));
        assert_eq!((&line["event"], &line["count"]), (&json!(""), &json!(1)));
    }

    #[test]
    fn no_value_breaks_out_of_its_line() {
        let path = "/\"}\n{\\\u{1}ы";
        let (text, line) = written(|| tracing::warn!(path, shown = %path, "{path}"));
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert_eq!(
            (&line["event"], &line["path"], &line["shown"]),
            (&json!(path), &json!(path), &json!(path))
        );
    }
}
