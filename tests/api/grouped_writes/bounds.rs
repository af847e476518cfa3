//! Locked users, full queues and lanes that close.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_a_locked_user_keep_their_order() {
    let world = world().await;
    let grouped = UserWrites::grouped(&database(&world, Route::Direct));
    let mut stranger = PgConnection::connect(&world.database_url).await.unwrap();
    let mut lock = stranger.begin().await.unwrap();
    sqlx::query("SELECT FROM users WHERE id = 2 FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let names: Vec<_> = (1..=20).map(|number| number.to_string()).collect();
    let writes = join_all(names.iter().map(|name| grouped.write(rename(2, name))));
    let others = async {
        grouped.write(rename(4, "other")).await.unwrap();
        lock.commit().await.unwrap();
    };
    let (answers, ()) = tokio::join!(writes, others);
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Ok(Outcome::Changed(_) | Outcome::Unchanged(_))))
    );
    let published = "SELECT payload->>'name' FROM outbox WHERE user_id = 2 ORDER BY seq";
    let published: Vec<String> = sqlx::query_scalar(published)
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(published, names);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_user_delays_no_other_and_keeps_the_lockers_change() {
    let world = world().await;
    let grouped = UserWrites::grouped(&database(&world, Route::Direct));
    for deletes in [false, true] {
        let mut stranger = PgConnection::connect(&world.database_url).await.unwrap();
        let mut lock = stranger.begin().await.unwrap();
        let change_of_theirs =
            "UPDATE users SET surname = 'Чужой', version = version + 1 WHERE id = 2";
        sqlx::query(change_of_theirs)
            .execute(&mut *lock)
            .await
            .unwrap();
        let of_locked = Ask::Update {
            name: Some(7),
            surname: None,
            password: false,
        };
        let locked = change(2, if deletes { Ask::Delete } else { of_locked }, 0);
        let waiting = tokio::spawn({
            let grouped = grouped.clone();
            async move { grouped.write(locked).await }
        });
        // Of the same lane, and the other one.
        for user in [4, 1, 4, 3] {
            let renamed = grouped.write(rename(user, &format!("{deletes}"))).await;
            assert!(!matches!(renamed.unwrap(), Outcome::NotFound));
        }
        assert!(!waiting.is_finished());
        lock.commit().await.unwrap();
        let user = changed(waiting.await.unwrap().unwrap());
        assert_eq!(user.surname.as_str(), "Чужой");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlocked_user_is_changed_again_even_in_a_busy_lane() {
    let world = World::new().await;
    add_users(&world, 40).await;
    let grouped = UserWrites::grouped(&database(&world, Route::Direct));
    let busy = tokio_util::sync::CancellationToken::new();
    // Of the same lane; several a user, so that some wait at any time.
    let load: Vec<_> = (0..80_usize)
        .map(|number| {
            let grouped = grouped.clone();
            let busy = busy.clone();
            tokio::spawn(async move {
                while !busy.is_cancelled() {
                    let name = fastrand::u32(..).to_string();
                    grouped
                        .write(rename(4 + number % 18 * 2, &name))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let mut stranger = PgConnection::connect(&world.database_url).await.unwrap();
    let mut lock = stranger.begin().await.unwrap();
    sqlx::query("SELECT FROM users WHERE id = 2 FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let locked = tokio::spawn({
        let grouped = grouped.clone();
        async move { grouped.write(rename(2, "first")).await }
    });
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity
                                WHERE datname = current_database() AND wait_event_type = 'Lock')";
    until("the write that waits", async || world.value(waits).await).await;
    lock.commit().await.unwrap();
    changed(locked.await.unwrap().unwrap());
    changed(grouped.write(rename(2, "second")).await.unwrap());
    busy.cancel();
    for client in load {
        client.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_beyond_the_queue_limit_are_refused_and_leave_nothing() {
    const CAPACITY: usize = 8;
    let world = world().await;
    let grouped = UserWrites::with_capacity(&database(&world, Route::Direct), CAPACITY);
    grouped.write(rename(1, "first")).await.unwrap();
    let mut holder = PgConnection::connect(&world.database_url).await.unwrap();
    let mut lock = holder.begin().await.unwrap();
    sqlx::query("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let writes: Vec<_> = (0..100)
        .map(|number| {
            let grouped = grouped.clone();
            let change = rename(1, &format!("{number}"));
            tokio::spawn(async move { grouped.write(change).await })
        })
        .collect();
    until("refusals", async || {
        writes.iter().any(tokio::task::JoinHandle::is_finished)
    })
    .await;
    lock.rollback().await.unwrap();
    let mut refused = 0;
    let mut written = 0;
    for write in writes {
        match write.await.unwrap() {
            Err(DatabaseError::Overloaded) => refused += 1,
            answer => written += usize::from(matches!(answer.unwrap(), Outcome::Changed(_))),
        }
    }
    assert!(
        refused > 0 && written >= CAPACITY,
        "{refused} refused, {written} written"
    );
    let version: i64 = world.value("SELECT version FROM users WHERE id = 1").await;
    assert_eq!(version, 2 + key(written));
}

#[tokio::test]
async fn writes_that_wait_when_the_lanes_close_are_still_done() {
    let world = world().await;
    let grouped = UserWrites::grouped(&database(&world, Route::Direct));
    let names: Vec<_> = (0..60).map(|number| number.to_string()).collect();
    let writes = join_all(names.iter().map(|name| grouped.write(rename(1, name))));
    let (answers, ()) = tokio::join!(writes, grouped.close());
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Ok(Outcome::Changed(_) | Outcome::Unchanged(_))))
    );
    assert!(matches!(
        grouped.write(rename(1, "late")).await,
        Err(DatabaseError::Timeout)
    ));
}

#[tokio::test]
async fn concurrent_updates_each_get_a_version_in_few_statements() {
    let world = World::new().await;
    add_users(&world, 100).await;
    // Without a broker, so that the events stay in the outbox.
    let app = App::start(&world)
        .with(&[
            ("GROUP_COMMIT", "true"),
            ("RABBITMQ_URL", "amqp://127.0.0.1:1"),
        ])
        .launch()
        .await;
    app.until_ready("degraded").await;
    let bodies: Vec<_> = (1..=100)
        .map(|number| json!({"name": format!("Имя {number}")}))
        .collect();
    let of_one = join_all(bodies[..60].iter().map(|body| app.put("/users/1", body))).await;
    assert!(of_one.iter().all(|answer| answer.status == 200));
    let of_many = (2..=100)
        .map(|user| (format!("/users/{user}"), &bodies[user - 1]))
        .collect::<Vec<_>>();
    let of_many = join_all(of_many.iter().map(|(path, body)| app.put(path, body))).await;
    assert!(of_many.iter().all(|answer| answer.status == 200));
    assert_eq!(
        world
            .value::<i64>("SELECT version FROM users WHERE id = 1")
            .await,
        61
    );
    assert_eq!(users_with_wrong_events(&world).await, [] as [i64; 0]);
    assert_eq!(app.metric("grouped_writes_total").await, 159);
    let statements = app.metric("write_groups_total").await;
    assert!(statements < 159, "{statements}");
}
