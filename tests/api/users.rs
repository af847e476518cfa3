//! The successful requests to the users resource.

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection;

use harness::{Answer, App, PASSWORD, World, new_user, start};

fn is_timestamp(value: &Value) -> bool {
    // 2024-12-04T10:30:00.123Z
    let text = value.as_str().unwrap_or_default();
    text.len() == 24
        && text.ends_with('Z')
        && text.as_bytes()[19] == b'.'
        && text.parse::<chrono::DateTime<chrono::Utc>>().is_ok()
}

#[tokio::test]
async fn a_created_user_is_returned_located_and_stored_only_hashed() {
    let (world, app) = start().await;
    let created = app
        .post(
            "/users",
            &json!({"name": "  Анна ", "surname": "Ли", "password": PASSWORD}),
        )
        .await;
    assert_eq!(created.status, StatusCode::CREATED);
    assert_eq!(created.header("location"), "/users/1");
    let keys: Vec<_> = created.body.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys.iter().collect::<std::collections::BTreeSet<_>>().len(),
        6
    );
    assert_eq!(
        (&created.body["name"], &created.body["surname"]),
        (&json!("Анна"), &json!("Ли"))
    );
    assert!(
        is_timestamp(&created.body["created_at"])
            && created.body["created_at"] == created.body["updated_at"],
        "{created:?}"
    );
    assert_eq!(app.get(created.header("location")).await.body, created.body);

    let stored: String = world.value("SELECT password FROM users").await;
    assert!(
        stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
        "{stored}"
    );
}

#[tokio::test]
async fn paths_with_and_without_a_trailing_slash_answer_alike() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    for (path, slashed) in [("/users", "/users/"), ("/users/1", "/users/1/")] {
        let plain = app.get(path).await;
        let slashed = app.get(slashed).await;
        assert_eq!((plain.status, &plain.body), (StatusCode::OK, &slashed.body));
    }
    assert_eq!(
        app.put("/users/1/", &json!({"name": "Яна"})).await.status,
        StatusCode::OK
    );
    assert_eq!(
        app.post("/users/", &new_user("Ева")).await.status,
        StatusCode::CREATED
    );
    assert_eq!(app.delete("/users/1/").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_put_changes_given_fields_and_keeps_absent_or_null_ones() {
    let (_world, app) = start().await;
    let created = app.post("/users", &new_user("Анна")).await.body;
    let updated = app
        .put("/users/1", &json!({"name": "Яна", "surname": null}))
        .await;
    assert_eq!(updated.status, StatusCode::OK);
    assert_eq!(
        (&updated.body["name"], &updated.body["surname"]),
        (&json!("Яна"), &created["surname"])
    );
    assert_eq!(updated.body["created_at"], created["created_at"]);
    assert!(
        updated.body["updated_at"].as_str() > created["updated_at"].as_str(),
        "{updated:?}"
    );
    assert_eq!(app.get("/users/1").await.body, updated.body);
}

#[tokio::test]
async fn a_put_of_a_password_is_a_change_even_when_it_is_the_same() {
    let (world, app) = start().await;
    let created = app.post("/users", &new_user("Анна")).await.body;
    let hash = async || world.value::<String>("SELECT password FROM users").await;
    let before = hash().await;
    let updated = app.put("/users/1", &json!({"password": PASSWORD})).await;
    assert_eq!(updated.status, StatusCode::OK);
    assert_ne!(hash().await, before);
    assert_ne!(updated.body["updated_at"], created["updated_at"]);
}

#[tokio::test]
async fn a_put_without_a_change_keeps_updated_at_and_sends_no_event() {
    let (world, app) = start().await;
    let created = app.post("/users", &new_user("Анна")).await.body;
    for body in [
        json!({}),
        json!({"name": "Анна"}),
        json!({"name": " Анна ", "surname": null}),
    ] {
        let answer = app.put("/users/1", &body).await;
        assert_eq!((answer.status, &answer.body), (StatusCode::OK, &created));
    }
    let version: i64 = world.value("SELECT version FROM users").await;
    assert_eq!(version, 1);
}

#[tokio::test]
async fn a_put_of_name_racing_a_put_of_surname_keeps_both() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    for round in 0..20 {
        let name = format!("Имя{round}");
        let surname = format!("Фамилия{round}");
        let name_body = json!({"name": name});
        let surname_body = json!({"surname": surname});
        let answers = tokio::join!(
            app.put("/users/1", &name_body),
            app.put("/users/1", &surname_body)
        );
        assert_eq!(
            (answers.0.status, answers.1.status),
            (StatusCode::OK, StatusCode::OK)
        );
        let user = app.get("/users/1").await.body;
        assert_eq!(
            (&user["name"], &user["surname"]),
            (&json!(name), &json!(surname))
        );
    }
}

#[tokio::test]
async fn password_change_of_a_missing_user_is_404_without_hashing() {
    let world = World::new().await;
    // This many concurrent hashes could not all get a core within a millisecond.
    let app = App::start(&world)
        .with(&[("PASSWORD_HASH_WAIT_MS", "1")])
        .await;
    let body = json!({"password": PASSWORD});
    for answer in join_all((0..60).map(|_| app.put("/users/999999999", &body))).await {
        answer.assert_problem(404, "user_not_found");
    }
}

#[tokio::test]
async fn a_second_delete_is_404() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    assert_eq!(app.delete("/users/1").await.status, StatusCode::NO_CONTENT);
    app.delete("/users/1")
        .await
        .assert_problem(404, "user_not_found");
    app.get("/users/1")
        .await
        .assert_problem(404, "user_not_found");
    app.put("/users/1", &json!({"name": "Яна"}))
        .await
        .assert_problem(404, "user_not_found");
    assert_eq!(app.get("/users").await.body, json!([]));
}

#[tokio::test]
async fn a_list_is_ordered_capped_counted_and_linked() {
    let (world, app) = start().await;
    sqlx::query(
        "INSERT INTO users (name, surname, password) SELECT 'Имя' || n, 'Ф', '$argon2id$x' FROM \
         generate_series(1, 250) n",
    )
    .execute(&world.pool)
    .await
    .unwrap();
    let ids = |answer: &Answer| -> Vec<i64> {
        answer
            .body
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["id"].as_i64().unwrap())
            .collect()
    };
    let first = app.get("/users").await;
    assert_eq!(
        (first.status, first.header("x-total-count")),
        (StatusCode::OK, "250")
    );
    assert_eq!(ids(&first), (1..=100).collect::<Vec<_>>());

    // Following `next` from the first page visits everyone once.
    let mut seen = ids(&first);
    let mut page = first;
    while let Some(next) = link(page.header("link"), "next") {
        page = app.get(&next).await;
        seen.extend(ids(&page));
    }
    assert_eq!(seen, (1..=250).collect::<Vec<_>>());
    assert_eq!(
        link(page.header("link"), "prev").unwrap(),
        "/users?limit=100&offset=100"
    );
    assert_eq!(
        link(page.header("link"), "last").unwrap(),
        "/users?limit=100&offset=200"
    );
    assert_eq!(
        link(page.header("link"), "first").unwrap(),
        "/users?limit=100&offset=0"
    );

    assert_eq!(ids(&app.get("/users?limit=2&offset=3").await), [4, 5]);
    let beyond = app.get("/users?offset=100000").await;
    assert_eq!(
        (beyond.status, beyond.header("x-total-count"), ids(&beyond)),
        (StatusCode::OK, "250", vec![])
    );
    let too_far = app.get("/users?offset=9223372036854775807").await;
    too_far.assert_problem(400, "invalid_query");
    let detail = too_far.body["errors"][0]["detail"].as_str().unwrap();
    assert!(
        detail.contains("100000") && detail.contains("cursor"),
        "{detail}"
    );
}

#[tokio::test]
async fn the_total_is_exact_despite_direct_sql_and_open_transactions() {
    let (world, app) = start().await;
    let total = async || {
        app.get("/users?limit=1")
            .await
            .header("x-total-count")
            .parse::<i64>()
            .unwrap()
    };
    assert_eq!(total().await, 0);
    let add = "INSERT INTO users (name, surname, password) SELECT 'А', 'Б', '$argon2id$x' FROM \
               generate_series(1, 20)";
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let mut stranger = sqlx::PgConnection::connect(&world.database_url)
            .await
            .unwrap();
        sqlx::raw_sql("BEGIN").execute(&mut stranger).await.unwrap();
        sqlx::query(add).execute(&mut stranger).await.unwrap();
        strangers.push(stranger);
    }
    // They block nobody, and uncommitted rows are not counted.
    let id = app.create_user("Анна").await;
    assert_eq!(total().await, 1);
    for (stranger, end) in strangers.iter_mut().zip(["COMMIT", "ROLLBACK", "COMMIT"]) {
        sqlx::raw_sql(end).execute(stranger).await.unwrap();
    }
    assert_eq!(total().await, 41);
    assert_eq!(
        app.delete(&format!("/users/{id}")).await.status,
        StatusCode::NO_CONTENT
    );
    sqlx::query("DELETE FROM users WHERE id % 2 = 0")
        .execute(&world.pool)
        .await
        .unwrap();
    let counted: i64 = world.value("SELECT count(*) FROM users").await;
    assert_eq!(total().await, counted);
    sqlx::raw_sql("TRUNCATE users")
        .execute(&world.pool)
        .await
        .unwrap();
    assert_eq!(total().await, 0);
}

#[tokio::test]
async fn concurrent_lists_see_every_user_created_before_they_began() {
    let (world, app) = start().await;
    for users in 1..=10 {
        sqlx::query("INSERT INTO users (name, surname, password) VALUES ('А', 'Б', '$argon2id$x')")
            .execute(&world.pool)
            .await
            .unwrap();
        let lists = (0..20).map(|number| {
            app.get(if number % 2 == 0 {
                "/users"
            } else {
                "/users?limit=50"
            })
        });
        for list in join_all(lists).await {
            assert_eq!(list.body.as_array().unwrap().len(), users);
            assert_eq!(list.header("x-total-count"), users.to_string());
        }
    }
}

/// The target of a relation in a `Link` header.
fn link(header: &str, relation: &str) -> Option<String> {
    let link = header
        .split(", ")
        .find(|link| link.ends_with(&format!("rel=\"{relation}\"")))?;
    Some(link[1..link.find('>').unwrap()].to_owned())
}

#[tokio::test]
async fn head_answers_as_get_without_a_body() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    for path in ["/users", "/users/", "/users/1", "/users/2", "/health/live"] {
        let get = app.get(path).await;
        let head = Answer::of(app.request(Method::HEAD, path)).await;
        assert_eq!(
            (head.status, head.text.as_str()),
            (get.status, ""),
            "{path}"
        );
        for header in ["content-type", "content-length", "x-total-count", "link"] {
            assert_eq!(
                head.headers.get(header),
                get.headers.get(header),
                "{path} {header}"
            );
        }
    }
}

#[tokio::test]
async fn names_are_stored_in_nfc_and_keep_invisible_characters() {
    let (_world, app) = start().await;
    let id = app.create_user(" И\u{306}оханн ").await;
    assert_eq!(
        app.get(&format!("/users/{id}")).await.body["name"],
        "Йоханн"
    );
    let same = app
        .put(&format!("/users/{id}"), &json!({"name": "Йоханн"}))
        .await;
    assert_eq!(same.body["updated_at"], same.body["created_at"], "{same:?}");
    let joined = app
        .put(
            &format!("/users/{id}"),
            &json!({"surname": "می\u{200c}خواهم"}),
        )
        .await;
    assert_eq!(joined.body["surname"], "می\u{200c}خواهم");
}
