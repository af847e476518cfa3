//! A cluster of three RabbitMQ nodes loses the leader of the queue.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::chaos::trial::Trial;
use harness::{Control, Node, Proxy, World, eventually, management_at, until};

/// The number of the node that leads a queue, according to the node `asked`.
async fn leader_of(queue: &str, virtual_host: &str, asked: &Node) -> Option<usize> {
    let url = management_at(
        asked.management_port,
        &format!("/api/queues/{virtual_host}/{queue}"),
    );
    let answer: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
    answer["leader"]
        .as_str()?
        .strip_prefix("rabbit")?
        .split('@')
        .next()?
        .parse()
        .ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_queues_leader_node_three_times_loses_nothing() {
    let nodes = Control::of_shared_servers().cluster().await;
    let mut world = World::new().await;
    let virtual_host = world.virtual_host.clone();
    let url = management_at(
        nodes[0].management_port,
        &format!("/api/vhosts/{virtual_host}"),
    );
    reqwest::Client::new()
        .put(url)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    // Stands for a load balancer: connects to any node that answers.
    let ports: Vec<u16> = nodes.iter().map(|node| node.amqp_port).collect();
    let balancer = Proxy::before_any_of(&ports).await;
    world.broker_url = balancer.url(&world.broker_url);
    let mut trial = Trial::start_with(world, 2, &[("AMQP_QUEUE_TYPE", "quorum")]).await;
    let load = trial.load(300);
    for _ in 0..3 {
        sleep(Duration::from_secs(3)).await;
        let asked = fastrand::usize(..3);
        let leader = eventually("a queue's leader", async || {
            leader_of("user_events_queue", &virtual_host, &nodes[asked]).await
        })
        .await;
        let node = &nodes[leader - 1];
        node.control.signal("rabbitmq", "KILL").await;
        let began = Instant::now();
        let collected = trial.collector.count();
        until("events that flow", async || {
            trial.collector.count() > collected + 500
        })
        .await;
        eprintln!(
            "  node {leader} killed: events flow again after {:?}",
            began.elapsed()
        );
        node.control.start("rabbitmq").await;
        eventually("all three nodes", async || {
            let status = node
                .control
                .rabbitmqctl(&["cluster_status", "--formatter", "json"])
                .await;
            let status: Value = serde_json::from_str(&status).ok()?;
            (status["running_nodes"].as_array()?.len() == 3).then_some(())
        })
        .await;
    }
    assert_eq!(
        load.tally
            .refused
            .load(std::sync::atomic::Ordering::Relaxed),
        0,
        "no write may fail"
    );
    trial.until_quiet().await;
    for replica in &mut trial.replicas {
        assert!(replica.is("ready").await, "{}", replica.health().await);
    }
    trial.finish(load).await;
    for node in nodes {
        node.control.signal("rabbitmq", "KILL").await;
    }
}
