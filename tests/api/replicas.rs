//! Several processes on one database: one publishes, and whoever stops or freezes is replaced.

use serde_json::json;

use crate::harness::{App, Observer, World, assert_delivered_exactly, audit, committed, eventually};

async fn leads(app: &App) -> bool {
    app.get("/health/ready").await.body["checks"]["relay"] == "leading"
}

#[tokio::test]
async fn a_leader_that_freezes_is_replaced_and_does_no_harm_when_it_wakes() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    let frozen = App::start(&world).await;
    frozen.log.wait_for("Relay leads", |_| true).await;
    let other = App::start(&world).await;
    let id = other.create_user("Анна").await;
    frozen.signal("STOP");
    for n in 0..20 {
        assert_eq!(other.put(&format!("/users/{id}"), &json!({"name": format!("Имя{n}")})).await.status, 200);
    }
    // Its lease runs out after ten seconds.
    other.log.wait_for("Relay leads", |_| true).await;
    frozen.signal("CONT");
    for n in 0..20 {
        assert_eq!(frozen.put(&format!("/users/{id}"), &json!({"surname": format!("Фамилия{n}")})).await.status, 200);
    }
    assert_delivered_exactly(&mut observer, &committed(&world).await).await;
    world.until_outbox_is_empty().await;
    assert!(leads(&other).await && !leads(&frozen).await);
}

#[tokio::test]
async fn replicas_that_are_stopped_in_turn_under_load_fail_no_write_and_repeat_no_event() {
    let world = World::new().await;
    audit(&world).await;
    let mut observer = Observer::new(&world).await;
    let steady = App::start(&world).await;
    let id = steady.create_user("Анна").await;
    let mut writes = 0;
    for _ in 0..3 {
        let mut replica = App::start(&world).await;
        for n in 0..30 {
            let app = if n % 2 == 0 { &steady } else { &replica };
            writes += 1;
            assert_eq!(app.put(&format!("/users/{id}"), &json!({"name": format!("Имя{writes}")})).await.status, 200);
        }
        replica.signal("TERM");
        assert_eq!(
            steady.put(&format!("/users/{id}"), &json!({"surname": format!("Фамилия{writes}")})).await.status,
            200
        );
        assert_eq!(replica.exit_status().await.code(), Some(0));
    }
    let committed = committed(&world).await;
    assert_eq!(committed.len(), 1 + 90 + 3);
    assert_eq!(assert_delivered_exactly(&mut observer, &committed).await, 0);
    eventually("a leader", async || leads(&steady).await.then_some(())).await;
}
