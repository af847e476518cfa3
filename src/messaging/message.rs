//! An event as a message: the body's JSON and the AMQP properties, written and read.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::domain::event::EventType;
use crate::domain::timestamp::Timestamp;
use crate::repository::outbox_event::OutboxEvent;
use crate::trace_id::TraceId;

/// AMQP delivery mode of messages that survive a restart of the broker.
pub(crate) const PERSISTENT: u8 = 2;
/// Also in the body; the header shows it without parsing the body.
pub(crate) const TRACE_ID_HEADER: &str = "trace_id";

#[derive(Serialize)]
struct Body<'a> {
    event_type: &'a str,
    user_id: i64,
    trace_id: &'a str,
    timestamp: Timestamp,
    data: &'a RawValue,
    event_id: Uuid,
    version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<&'a str>,
}

/// The body of an event's message, as JSON.
pub(crate) fn body(event: &OutboxEvent) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&Body {
        event_type: &event.event_type,
        user_id: event.user_id,
        trace_id: &event.trace_id,
        timestamp: event.occurred_at,
        data: &event.data,
        event_id: event.id,
        version: event.version,
        actor: event.actor.as_deref(),
    })
}

pub(crate) fn properties(event: &OutboxEvent) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(
        TRACE_ID_HEADER.into(),
        AMQPValue::LongString(event.trace_id.as_str().into()),
    );
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(event.id.to_string().into())
        .with_correlation_id(event.trace_id.as_str().into())
        .with_type(event.event_type.as_str().into())
        .with_app_id(env!("CARGO_PKG_NAME").into())
        .with_headers(headers)
}

/// The part of a message that the consumer reads. It ignores other fields.
#[derive(Debug, Deserialize)]
pub(crate) struct ReceivedEvent {
    pub event_type: String,
    pub user_id: i64,
    pub trace_id: String,
    pub event_id: Uuid,
    pub version: i64,
}

/// Reads a message's body.
///
/// # Errors
/// Why it is not an event, without repeating its content.
pub(crate) fn parse(body: &[u8]) -> Result<ReceivedEvent, String> {
    // serde_json reports the position and what it expected. It repeats the content only for values
    // of a wrong type.
    let event: ReceivedEvent =
        serde_json::from_slice(body).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                format!("not an event, at column {}", error.column())
            }
            _ => format!("not JSON: {error}"),
        })?;
    if EventType::parse(&event.event_type).is_none() {
        return Err("unknown event type".to_owned());
    }
    if TraceId::parse(event.trace_id.as_bytes()).is_none() {
        return Err(format!("its trace_id is not {}", TraceId::FORM));
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::{body, parse};
    use crate::repository::outbox_event::OutboxEvent;

    fn event() -> OutboxEvent {
        OutboxEvent {
            seq: 1,
            is_behind: false,
            id: Uuid::now_v7(),
            fault: None,
            event_type: "user.created".to_owned(),
            user_id: 7,
            version: 1,
            trace_id: "t-1".to_owned(),
            occurred_at: "2024-12-04T10:30:00.123Z"
                .parse::<chrono::DateTime<chrono::Utc>>()
                .unwrap()
                .into(),
            data: RawValue::from_string(r#"{"name":"Иван","surname":"Иванов"}"#.to_owned())
                .unwrap(),
            actor: None,
        }
    }

    #[test]
    fn the_message_body_has_the_five_original_keys_and_two_more() {
        let event = event();
        let written: Value = serde_json::from_slice(&body(&event).unwrap()).unwrap();
        assert_eq!(
            written,
            json!({
                "event_type": "user.created", "user_id": 7, "trace_id": "t-1", "timestamp": "2024-12-04T10:30:00.123Z",
                "data": {"name": "Иван", "surname": "Иванов"}, "event_id": event.id.to_string(), "version": 1,
            })
        );
    }

    #[test]
    fn an_actor_is_one_key_more() {
        let actor = Some("key:front-end".to_owned());
        let event = OutboxEvent { actor, ..event() };
        let written: Value = serde_json::from_slice(&body(&event).unwrap()).unwrap();
        assert_eq!(written["actor"], "key:front-end");
        assert!(parse(&body(&event).unwrap()).is_ok());
    }

    #[test]
    fn a_written_message_can_be_read_back() {
        let event = event();
        let read = parse(&body(&event).unwrap()).unwrap();
        assert_eq!(
            (read.event_id, read.user_id, read.version),
            (event.id, 7, 1)
        );
    }

    #[test]
    fn a_refusal_does_not_repeat_what_the_message_holds() {
        let unknown = r#"{"event_type":"secret","user_id":1,"trace_id":"t","event_id":"018f0000-0000-7000-8000-000000000000","version":1}"#;
        for body in [
            "",
            "secret",
            "[\"secret\"]",
            r#"{"event_type":"user.created","user_id":"secret"}"#,
            unknown,
        ] {
            let reason = parse(body.as_bytes()).unwrap_err();
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
