//! Events: how many the relay publishes per second, and how long one takes from its commit to the
//! consumer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::ready;
use futures_util::{StreamExt, TryStreamExt, stream};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use tokio::time::interval;
use tokio_util::task::AbortOnDropHandle;

use crate::stage::{Place, Sample};
use crate::{Outcome, Plan};
use harness::{QUEUE_TYPE, World, eventually};

/// Number of events in a backlog, per second of measurement.
const BACKLOG_PER_SECOND: u32 = 6_000;
/// The bare publisher's unconfirmed messages; the bare consumer's unacknowledged messages, and how
/// many of them it acknowledges together: the same numbers as the service's.
const UNCONFIRMED: usize = 2_000;
const PREFETCH: u16 = 200;
const ACK_EVERY: u64 = 100;
/// PUTs per second: few enough that none waits for another.
const LIGHT_LOAD: u64 = 100;

fn backlog(plan: Plan) -> u32 {
    BACKLOG_PER_SECOND * u32::try_from(plan.measured.as_secs()).unwrap_or(u32::MAX)
}

fn at(throughput: f64) -> Sample {
    Sample {
        throughput,
        p50: f64::NAN,
        p99: f64::NAN,
        cpu: None,
        peak_memory: None,
    }
}

/// Measures the relay on a backlog, from the first published event to the last, while the service's
/// consumer reads them.
pub async fn drain(place: &Place, plan: Plan) -> Outcome<Sample> {
    let events = backlog(plan);
    let pool = &place.world.pool;
    let before = place.service.cpu()?;
    let insert = "INSERT INTO outbox (event_id, event_type, user_id, user_version, trace_id, occurred_at, payload)
                  SELECT gen_random_uuid(), 'user.updated', n, 1, gen_random_uuid()::text, clock_timestamp(),
                         json_build_object('name', 'Имя' || n, 'surname', 'Фамилия' || n)
                  FROM generate_series(1, $1) AS n";
    sqlx::query(insert)
        .bind(i64::from(events))
        .execute(pool)
        .await?;
    // Through the index, because counting the rows would cost the server more than publishing them.
    let oldest = async || -> Outcome<Option<i64>> {
        Ok(
            sqlx::query_scalar("SELECT seq FROM outbox ORDER BY seq LIMIT 1")
                .fetch_optional(pool)
                .await?,
        )
    };
    let mut tick = interval(Duration::from_millis(10));
    let first = oldest().await?;
    let mut began = Instant::now();
    loop {
        tick.tick().await;
        let now = oldest().await?;
        if now == first {
            began = Instant::now();
        } else if now.is_none() {
            break;
        }
    }
    let throughput = f64::from(events) / began.elapsed().as_secs_f64();
    place.service.until_idle().await?;
    let cpu = (place.service.cpu()? - before) * 1e6 / f64::from(events);
    place.service.reset_peak()?;
    Ok(Sample {
        cpu: Some(cpu),
        ..at(throughput)
    })
}

/// Measures a bare publisher: the same number of messages, of the same size and with the same
/// properties, through the same types of exchange and queue. A bare consumer reads them if
/// `is_read`.
pub async fn publish(world: &World, plan: Plan, is_read: bool) -> Outcome<Sample> {
    let messages = backlog(plan);
    let connection =
        Connection::connect(&world.broker_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-queue-type".into(),
        AMQPValue::LongString(QUEUE_TYPE.as_str().into()),
    );
    let options = QueueDeclareOptions {
        durable: true,
        ..QueueDeclareOptions::default()
    };
    channel
        .queue_declare("bare".into(), options, arguments)
        .await?;
    let exchange = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let none = FieldTable::default;
    channel
        .exchange_declare("bare".into(), ExchangeKind::Topic, exchange, none())
        .await?;
    channel
        .queue_bind(
            "bare".into(),
            "bare".into(),
            "user.*".into(),
            QueueBindOptions::default(),
            none(),
        )
        .await?;
    let consumer = if is_read {
        Some(AbortOnDropHandle::new(tokio::spawn(consume(
            world.broker_url.clone(),
        ))))
    } else {
        None
    };
    let body = [b'x'; 290];
    let id = "018f0000-0000-7000-8000-000000000000";
    let began = Instant::now();
    let publishing = (0..messages).map(|_| async {
        let mut headers = FieldTable::default();
        headers.insert("trace_id".into(), AMQPValue::LongString(id.into()));
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(id.into())
            .with_correlation_id(id.into())
            .with_type("user.updated".into())
            .with_app_id("user-management-api".into())
            .with_headers(headers);
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        match channel
            .basic_publish(
                "bare".into(),
                "user.updated".into(),
                options,
                &body,
                properties,
            )
            .await?
            .await?
        {
            Confirmation::Ack(None) => Ok(()),
            _ => Outcome::Err("the broker refused a message".into()),
        }
    });
    stream::iter(publishing)
        .buffer_unordered(UNCONFIRMED)
        .try_for_each(|()| ready(Ok(())))
        .await?;
    let throughput = f64::from(messages) / began.elapsed().as_secs_f64();
    drop(consumer);
    channel
        .queue_delete("bare".into(), QueueDeleteOptions::default())
        .await?;
    channel
        .exchange_delete("bare".into(), ExchangeDeleteOptions::default())
        .await?;
    connection.close(200, "done".into()).await?;
    Ok(at(throughput))
}

/// Reads and acknowledges.
async fn consume(broker_url: String) -> Outcome<()> {
    let connection = Connection::connect(&broker_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .basic_qos(PREFETCH, BasicQosOptions::default())
        .await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume("bare".into(), "bare".into(), options, FieldTable::default())
        .await?;
    while let Some(delivery) = consumer.try_next().await? {
        if delivery.delivery_tag % ACK_EVERY == 0 {
            channel
                .basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true })
                .await?;
        }
    }
    Ok(())
}

/// Measures the time between the log lines `User updated`, which follows the commit, and `Event
/// received`.
pub async fn deliver(place: &Place, plan: Plan) -> Outcome<Sample> {
    place.service.reset_peak()?;
    let client = reqwest::Client::new();
    let address = &place.service.address;
    let mut tick = interval(Duration::from_millis(1000 / LIGHT_LOAD));
    let puts = LIGHT_LOAD * plan.measured.as_secs();
    for put in 0..puts {
        tick.tick().await;
        let name = format!("Имя {put} {}", fastrand::u64(..));
        let request = client.put(format!("http://{address}/users/{}", put + 1));
        request
            .json(&serde_json::json!({ "name": name }))
            .send()
            .await?
            .error_for_status()?;
    }
    let log = place.service.log.as_ref().ok_or("the service has no log")?;
    let delays = eventually("all events in the consumer's log", async || {
        let delays = delays(&std::fs::read_to_string(log).ok()?);
        (delays.len() as u64 == puts).then_some(delays)
    })
    .await;
    let percentile = |percent: usize| delays[delays.len() * percent / 100];
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let throughput = LIGHT_LOAD as f64;
    Ok(Sample {
        p50: percentile(50),
        p99: percentile(99),
        ..at(throughput)
    })
}

/// Returns the delay of each received event, in microseconds, sorted.
fn delays(log: &str) -> Vec<f64> {
    let mut committed = HashMap::new();
    let mut delays = Vec::new();
    for line in log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        let Some(trace_id) = line["trace_id"].as_str().map(ToOwned::to_owned) else {
            continue;
        };
        let Ok(time) = line["timestamp"]
            .as_str()
            .unwrap_or_default()
            .parse::<chrono::DateTime<chrono::Utc>>()
        else {
            continue;
        };
        match line["event"].as_str() {
            Some("User updated") => _ = committed.insert(trace_id, time),
            // Collected first, because another thread may have written this line before the
            // commit's line, within the same millisecond.
            Some("Event received") => delays.push((trace_id, time)),
            _ => {}
        }
    }
    let mut delays: Vec<f64> = delays
        .into_iter()
        .filter_map(|(trace_id, time)| {
            Some(
                (time - *committed.get(&trace_id)?)
                    .as_seconds_f64()
                    .max(0.0)
                    * 1e6,
            )
        })
        .collect();
    delays.sort_unstable_by(f64::total_cmp);
    delays
}
