//! The broker is killed, stopped, frozen, short of memory or disk.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::chaos::trial::Trial;
use harness::{App, Observer, Proxy, World, eventually, management_json, until};

/// How long to measure before and without the broker: enough for a percentile.
const SPAN: Duration = Duration::from_secs(15);

/// Waits until events flow again after the broker accepts connections, and returns how long it
/// took.
async fn until_leading(replica: &App) -> Duration {
    let began = Instant::now();
    until("a leader with a broker", async || replica.leads().await).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_under_load_slows_no_write_and_is_back_in_6_s() {
    let trial = Trial::start(1).await;
    let load = trial.load(300);
    sleep(SPAN + Duration::from_secs(2)).await;
    let killed = Instant::now();
    trial.control.signal("rabbitmq", "KILL").await;
    until("degraded", async || trial.replica().is("degraded").await).await;
    sleep(SPAN).await;
    let before = load.tally.p99_between(killed - SPAN, killed);
    let without = load.tally.p99_between(killed, Instant::now());
    trial.control.start("rabbitmq").await;
    let reconnected = until_leading(trial.replica()).await;
    eprintln!(
        "  p99 of writes: {before:?} before, {without:?} without the broker; reconnected in \
         {reconnected:?}"
    );
    assert_eq!(
        load.tally
            .refused
            .load(std::sync::atomic::Ordering::Relaxed),
        0,
        "no write may fail"
    );
    // A fifth more, plus the noise of a percentile of a few milliseconds on a shared machine.
    assert!(
        without <= before * 6 / 5 + Duration::from_millis(5),
        "{before:?}, then {without:?}"
    );
    assert!(reconnected <= Duration::from_secs(6), "{reconnected:?}");
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_silent_for_two_minutes_costs_no_write_or_thread() {
    let world = World::new().await;
    let proxy = Proxy::before(&world.broker_url).await;
    let by_proxy = proxy.url(&world.broker_url);
    let mut trial = Trial::start_with(world, 0, &[]).await;
    trial.add(&[("RABBITMQ_URL", &by_proxy)]).await;
    let load = trial.load(200);
    sleep(Duration::from_secs(2)).await;
    let before = trial.replica().threads_and_files();
    proxy.silence();
    until("degraded", async || trial.replica().is("degraded").await).await;
    sleep(Duration::from_mins(2)).await;
    let after = trial.replica().threads_and_files();
    proxy.open();
    let reconnected = until_leading(trial.replica()).await;
    eprintln!(
        "  threads and files: {before:?} before, {after:?} after two minutes; reconnected in \
         {reconnected:?}"
    );
    assert_eq!(
        load.tally
            .refused
            .load(std::sync::atomic::Ordering::Relaxed),
        0,
        "no write may fail"
    );
    assert!(
        after.0 <= before.0 + 4 && after.1 <= before.1 + 20,
        "{before:?}, then {after:?}"
    );
    assert!(reconnected <= Duration::from_secs(10), "{reconnected:?}");
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_broker_restart_costs_no_write_and_no_event() {
    let trial = Trial::start(1).await;
    let load = trial.load(300);
    for _ in 0..3 {
        sleep(Duration::from_secs(1)).await;
        trial.control.rabbitmqctl(&["stop_app"]).await;
        until("degraded", async || trial.replica().is("degraded").await).await;
        trial.control.rabbitmqctl(&["start_app"]).await;
        let reconnected = until_leading(trial.replica()).await;
        eprintln!("  reconnected in {reconnected:?}");
        assert!(reconnected <= Duration::from_secs(6), "{reconnected:?}");
    }
    assert_eq!(
        load.tally
            .refused
            .load(std::sync::atomic::Ordering::Relaxed),
        0,
        "no write may fail"
    );
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_down_for_60_s_costs_no_memory_and_5000_per_s_drain() {
    let trial = Trial::start(1).await;
    let load = trial.load(1_000);
    // Every pool and buffer has its size by then.
    sleep(Duration::from_secs(15)).await;
    trial.control.signal("rabbitmq", "KILL").await;
    let start = trial.replica().resident();
    let mut most = 0;
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        most = most.max(trial.replica().resident());
        assert!(trial.replica().is("degraded").await);
    }
    let accepted = load.tally.accepted();
    let tally = load.stop().await;
    assert!(
        accepted > 60_000,
        "{accepted} writes in 75 s are no 1,000 a second"
    );
    let pending = trial.pending().await;
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    eprintln!(
        "  RSS {:.1} MiB at the start of the outage, {:.1} at most; {pending} events wait",
        mib(start),
        mib(most)
    );
    assert!(most <= start + 10_000_000, "{start}, then {most}");
    trial.control.start("rabbitmq").await;
    until_leading(trial.replica()).await;
    let left = trial.pending().await;
    let began = Instant::now();
    trial.world.until_outbox_is_empty().await;
    let rate = left as f64 / began.elapsed().as_secs_f64();
    eprintln!("  {left} of them drained at {rate:.0} a second");
    assert!(rate >= 5_000.0, "{rate:.0} a second");
    let judgement = trial.judge(&tally).await;
    assert!(judgement.is_exact(), "{judgement:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_short_of_memory_or_disk_blocks_only_publishing() {
    let mut trial = Trial::start(1).await;
    let load = trial.load(200);
    let alarms = [
        (
            ["set_vm_memory_high_watermark", "absolute", "1MB"],
            &["set_vm_memory_high_watermark", "0.4"][..],
        ),
        (
            ["set_disk_free_limit", "mem_relative", "9000"],
            &["set_disk_free_limit", "100MB"],
        ),
    ];
    for (alarm, clear) in alarms {
        trial.control.rabbitmqctl(&alarm).await;
        until("blocked", async || {
            trial.replica().health().await["checks"]["publisher"] == "blocked"
        })
        .await;
        sleep(Duration::from_secs(3)).await;
        assert!(trial.replica().leads().await, "the lead is kept");
        assert!(trial.pending().await > 100, "events wait");
        trial.control.rabbitmqctl(clear).await;
        let began = Instant::now();
        until("an outbox that is nearly empty", async || {
            trial.pending().await < 50
        })
        .await;
        eprintln!("  {}: went on in {:?}", alarm[0], began.elapsed());
        assert!(
            began.elapsed() <= Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
    }
    assert_eq!(
        trial.troubles("Session lost, starting it again"),
        0,
        "no connection is lost"
    );
    trial.control.rabbitmqctl(&alarms[0].0).await;
    until("blocked", async || {
        trial.replica().health().await["checks"]["publisher"] == "blocked"
    })
    .await;
    let began = Instant::now();
    trial.replica().signal("TERM");
    assert_eq!(trial.replicas[0].exit_status().await.code(), Some(0));
    eprintln!("  stopped in {:?} while blocked", began.elapsed());
    assert!(
        began.elapsed() <= Duration::from_secs(25),
        "{:?}",
        began.elapsed()
    );
    trial.control.rabbitmqctl(alarms[0].1).await;
    trial.restart(0, &[]).await;
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_alarm_with_a_dead_letter_pending_delays_no_ack() {
    let trial = Trial::start(1).await;
    let mut stranger = Observer::new(&trial.world).await;
    let load = trial.load(50);
    let event = stranger.next_message().await;
    // While the consumer is stopped: one unreadable message, and behind it 50 known ones.
    trial.replica().signal("STOP");
    stranger
        .publish_to("", "user_events_queue", b"not json")
        .await;
    for _ in 0..50 {
        stranger
            .publish_to("", "user_events_queue", &event.data)
            .await;
    }
    trial
        .control
        .rabbitmqctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])
        .await;
    trial.replica().signal("CONT");
    let link = async |link: &str| {
        (trial.replica().health().await["checks"]["consumer"] == link).then_some(())
    };
    eventually("a consumer whose dead letter is blocked", async || {
        link("blocked").await
    })
    .await;
    let queue = format!("/api/queues/{}/user_events_queue", trial.world.virtual_host);
    until("all but the one acknowledged", async || {
        let queue = management_json(&queue).await;
        queue["messages_unacknowledged"] == 1 && queue["messages_ready"] == 0
    })
    .await;
    trial
        .control
        .rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"])
        .await;
    eventually("a consumer that is not blocked", async || link("up").await).await;
    let letter = eventually("the dead letter", || stranger.take("user_events_queue.dlq")).await;
    assert_eq!(letter.data, b"not json");
    assert_eq!(
        trial.troubles("Session lost, starting it again"),
        0,
        "no connection is lost"
    );
    trial.finish(load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_seen_in_two_heartbeats_costs_only_repeats() {
    let trial = Trial::start(1).await;
    let load = trial.load(200);
    sleep(Duration::from_secs(1)).await;
    trial.control.signal("rabbitmq", "STOP").await;
    let began = Instant::now();
    until("degraded", async || trial.replica().is("degraded").await).await;
    eprintln!("  noticed in {:?}", began.elapsed());
    assert!(
        began.elapsed() <= Duration::from_secs(13),
        "{:?}",
        began.elapsed()
    );
    sleep(Duration::from_secs(30).saturating_sub(began.elapsed())).await;
    trial.control.signal("rabbitmq", "CONT").await;
    until_leading(trial.replica()).await;
    assert_eq!(
        load.tally
            .refused
            .load(std::sync::atomic::Ordering::Relaxed),
        0,
        "no write may fail"
    );
    trial.finish(load).await;
}
