//! The seed's log line: one flat JSON object, `event`, `level`, `timestamp`, `trace_id`, then the line's own fields.

use std::{cell::RefCell, fmt};

use serde::{Serialize, Serializer};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::LookupSpan,
};

use crate::domain::timestamp::Timestamp;

thread_local! {
    /// Used again and again: `serde_json` is quickest where it may write bytes.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn in_buffer(mut writer: Writer<'_>, write: impl FnOnce(&mut Vec<u8>) -> fmt::Result) -> fmt::Result {
    LINE.with(|line| {
        // In use while a value is written that logs a line of its own.
        let (mut reused, mut own) = (line.try_borrow_mut(), Vec::new());
        let line = reused.as_deref_mut().unwrap_or(&mut own);
        line.clear();
        write(line)?;
        writer.write_str(str::from_utf8(line).map_err(|_| fmt::Error)?)
    })
}

/// Writes a whole line.
pub struct JsonLine;

impl<S> FormatEvent<S, JsonFields> for JsonLine
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        in_buffer(writer, |line| {
            line.extend_from_slice(b"{\"event\":");
            Members::write_all(line, Part::Message, |members| event.record(members))?;
            line.extend_from_slice(b",\"level\":\"");
            line.extend_from_slice(level(event).as_bytes());
            line.extend_from_slice(b"\",\"timestamp\":");
            serde_json::to_writer(&mut *line, &Timestamp::now()).map_err(|_| fmt::Error)?;
            for span in context.event_scope().into_iter().flatten() {
                if let Some(members) = span.extensions().get::<FormattedFields<JsonFields>>() {
                    line.extend_from_slice(members.as_bytes());
                }
            }
            Members::write_all(line, Part::Fields, |members| event.record(members))?;
            line.extend_from_slice(b"}\n");
            Ok(())
        })
    }
}

/// Writes a span's fields as `,"name":value` each, ready to be put into a line.
pub struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        in_buffer(writer, |line| Members::write_all(line, Part::Fields, |members| fields.record(members)))
    }
}

fn level(event: &Event<'_>) -> &'static str {
    match *event.metadata().level() {
        tracing::Level::ERROR => "error",
        tracing::Level::WARN => "warning",
        tracing::Level::INFO => "info",
        tracing::Level::DEBUG => "debug",
        tracing::Level::TRACE => "trace",
    }
}

#[derive(PartialEq, Eq)]
enum Part {
    Message,
    Fields,
}

struct Members<'line> {
    line: &'line mut Vec<u8>,
    part: Part,
    written: usize,
    result: fmt::Result,
}

impl<'line> Members<'line> {
    fn write_all(line: &'line mut Vec<u8>, part: Part, record: impl FnOnce(&mut Self)) -> fmt::Result {
        let mut members = Self { line, part, written: 0, result: Ok(()) };
        record(&mut members);
        // A library's line may have no message, or two of them.
        if members.part == Part::Message && members.written == 0 {
            members.line.extend_from_slice(b"\"\"");
        }
        members.result
    }

    fn member<T: Serialize + ?Sized>(&mut self, field: &Field, value: &T) {
        let is_message = field.name() == "message";
        let wanted = match self.part {
            Part::Message => is_message && self.written == 0,
            Part::Fields => !is_message,
        };
        if wanted && self.result.is_ok() {
            self.written += 1;
            if self.part == Part::Fields {
                self.line.extend_from_slice(b",\"");
                self.line.extend_from_slice(field.name().as_bytes());
                self.line.extend_from_slice(b"\":");
            }
            self.result = serde_json::to_writer(&mut *self.line, value).map_err(|_| fmt::Error);
        }
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

/// A value as its `Debug` has it, written straight into the line.
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

    use super::{JsonFields, JsonLine};

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
        let layer = tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields)
            .event_format(JsonLine)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), write);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let value = serde_json::from_str(&text).unwrap();
        (text, value)
    }

    #[test]
    fn a_line_is_flat_with_the_seeds_keys_first() {
        let (text, line) = written(|| {
            let span = tracing::error_span!("request", trace_id = "t-1");
            span.in_scope(|| tracing::info!(method = "POST", status_code = 201, duration_ms = 1.5, "Request started"));
        });
        assert!(text.starts_with(r#"{"event":"Request started","level":"info","timestamp":""#), "{text}");
        let (mut expected, timestamp) = (line.clone(), line["timestamp"].as_str().unwrap());
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
        assert_eq!((&line["event"], &line["path"], &line["shown"]), (&json!(path), &json!(path), &json!(path)));
    }
}
