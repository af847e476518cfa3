//! Two editors never overwrite each other: versions, entity tags, `If-Match`, `If-None-Match`.

use futures_util::future::join_all;
use reqwest::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use harness::library::add_users;
use harness::{
    Answer, App, Observer, PASSWORD, World, new_user, start, start_observed, start_with,
};

const CHANGES: [Method; 3] = [Method::PUT, Method::PATCH, Method::DELETE];

/// A change of a user, or a read.
fn request(app: &App, method: &Method, path: &str, body: &Value) -> RequestBuilder {
    let request = app.request(method.clone(), path);
    match *method {
        Method::PUT => request.json(body),
        Method::PATCH => request
            .header("content-type", "application/merge-patch+json")
            .json(body),
        _ => request,
    }
}

async fn if_match(app: &App, method: &Method, path: &str, body: &Value, tag: &str) -> Answer {
    Answer::of(request(app, method, path, body).header(IF_MATCH, tag)).await
}

async fn patch(app: &App, path: &str, body: &Value) -> Answer {
    Answer::of(request(app, &Method::PATCH, path, body)).await
}

fn name(name: &str) -> Value {
    json!({ "name": name })
}

#[tokio::test]
async fn every_answer_with_a_user_has_its_version_at_the_end() {
    let (_world, app) = start().await;
    let created = app.post("/users", &new_user("Анна")).await;
    let put = app.put("/users/1", &name("Яна")).await;
    let patched = patch(&app, "/users/1", &name("Ева")).await;
    let read = app.get("/users/1").await;
    for (answer, version) in [(&created, 1), (&put, 2), (&patched, 3), (&read, 3)] {
        assert_eq!(answer.body["version"], version, "{answer:?}");
        assert!(answer.text.ends_with(&format!("\"version\":{version}}}")));
    }
    assert_eq!(app.get("/users").await.body, json!([read.body]));
}

#[tokio::test]
async fn the_entity_tag_is_the_version_and_a_put_has_none() {
    let (_world, app) = start().await;
    let created = app.post("/users", &new_user("Анна")).await;
    assert_eq!(created.header("etag"), "\"1\"");
    let put = app.put("/users/1", &name("Яна")).await;
    assert!(!put.headers.contains_key(ETAG), "{put:?}");
    assert_eq!(app.get("/users/1").await.header("etag"), "\"2\"");
    let patched = patch(&app, "/users/1", &name("Ева")).await;
    assert_eq!(patched.header("etag"), "\"3\"");
    let unchanged = patch(&app, "/users/1", &json!({})).await;
    assert_eq!(unchanged.header("etag"), "\"3\"");
    assert!(!app.get("/users").await.headers.contains_key(ETAG));
}

#[tokio::test]
async fn a_read_of_a_known_version_is_304_without_a_body() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    for tags in ["\"1\"", "W/\"1\"", "\"7\", \"1\"", "*"] {
        for method in [Method::GET, Method::HEAD] {
            let read = app.request(method, "/users/1").header(IF_NONE_MATCH, tags);
            let answer = Answer::of(read).await;
            assert_eq!(answer.status, StatusCode::NOT_MODIFIED, "{tags}");
            assert_eq!(answer.header("etag"), "\"1\"");
            assert_eq!(answer.header("cache-control"), "private, no-cache");
            assert_eq!(answer.text, "");
            for absent in ["content-type", "content-length"] {
                assert!(!answer.headers.contains_key(absent), "{answer:?}");
            }
        }
    }
    for tags in ["\"2\"", "\"01\"", "W/\"x\"", "\"\""] {
        let read = app.request(Method::GET, "/users/1");
        let answer = Answer::of(read.header(IF_NONE_MATCH, tags)).await;
        assert_eq!(answer.status, StatusCode::OK, "{tags}");
    }
}

#[tokio::test]
async fn a_read_of_another_version_than_asked_for_is_412() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    for (tags, status) in [("\"1\"", 200), ("*", 200), ("\"2\"", 412), ("W/\"1\"", 412)] {
        let answer = if_match(&app, &Method::GET, "/users/1", &Value::Null, tags).await;
        assert_eq!(answer.status, status, "{tags}");
        assert_eq!(answer.header("etag"), "\"1\"");
        let head = if_match(&app, &Method::HEAD, "/users/1", &Value::Null, tags).await;
        assert_eq!((head.status, head.text.as_str()), (answer.status, ""));
        assert_eq!(head.headers.get(ETAG), answer.headers.get(ETAG));
    }
    // If-Match is judged first.
    let both = app
        .request(Method::GET, "/users/1")
        .header(IF_MATCH, "\"2\"");
    let answer = Answer::of(both.header(IF_NONE_MATCH, "\"1\"")).await;
    answer.assert_problem(412, "precondition_failed");
}

#[tokio::test]
async fn a_change_with_a_stale_tag_is_412_and_names_the_newest() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    app.put("/users/1", &name("Яна")).await;
    for method in &CHANGES {
        for tags in ["\"1\"", "W/\"2\"", "\"3\", \"4\"", "\"02\"", "\"x\""] {
            let answer = if_match(&app, method, "/users/1", &name("Ева"), tags).await;
            answer.assert_problem(412, "precondition_failed");
            assert_eq!(answer.header("etag"), "\"2\"", "{method} {tags}");
        }
        for tags in ["\"2\"", "W/\"2\"", "*", "\"1\", \"2\""] {
            let change = request(&app, method, "/users/1", &name("Ева"));
            let answer = Answer::of(change.header(IF_NONE_MATCH, tags)).await;
            answer.assert_problem(412, "precondition_failed");
        }
    }
    // Even if nothing would change.
    let unchanged = if_match(&app, &Method::PUT, "/users/1", &name("Яна"), "\"1\"").await;
    unchanged.assert_problem(412, "precondition_failed");
    assert_eq!(app.get("/users/1").await.body["name"], "Яна");
}

#[tokio::test]
async fn a_change_with_the_newest_tag_succeeds() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    let tags = [
        (IF_MATCH, "\"1\""),
        (IF_MATCH, "\"7\", W/\"2\",, \"2\""),
        (IF_MATCH, " * "),
        (IF_NONE_MATCH, "\"3\", \"x\""),
    ];
    for (version, (header, tags)) in (2..).zip(tags) {
        let change = app.request(Method::PUT, "/users/1");
        let change = change.json(&name(&format!("Имя{version}")));
        let answer = Answer::of(change.header(header, tags)).await;
        assert_eq!(answer.body["version"], version, "{tags} {answer:?}");
    }
    let lines = app.request(Method::DELETE, "/users/1");
    let lines = lines.header(IF_MATCH, "\"4\"").header(IF_MATCH, "\"5\"");
    assert_eq!(Answer::of(lines).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_is_no_list_of_tags_is_400_and_never_ignored() {
    let (world, app) = start().await;
    app.create_user("Анна").await;
    let many = vec!["\"1\""; 33].join(",");
    for tags in [
        "",
        ",",
        "1",
        "\"1",
        "*, \"1\"",
        "w/\"1\"",
        "\"1\" \"2\"",
        &many,
    ] {
        for header in [IF_MATCH, IF_NONE_MATCH] {
            for method in [Method::GET, Method::PUT, Method::PATCH, Method::DELETE] {
                let asked = request(&app, &method, "/users/1", &name("Ева"));
                let answer = Answer::of(asked.header(&header, tags)).await;
                answer.assert_problem(400, "bad_request");
                let named = header.as_str();
                let detail = answer.body["detail"].as_str().unwrap().to_lowercase();
                assert!(detail.starts_with(named), "{method} {tags}: {detail}");
            }
        }
    }
    assert_eq!(world.value::<i64>("SELECT version FROM users").await, 1);
    // Elsewhere they have no meaning.
    let list = app.request(Method::GET, "/users").header(IF_MATCH, "1");
    assert_eq!(Answer::of(list).await.status, StatusCode::OK);
    let create = app.request(Method::POST, "/users").json(&new_user("Ева"));
    let create = create.header(IF_NONE_MATCH, "*");
    assert_eq!(Answer::of(create).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_change_with_if_match_of_a_user_who_is_gone_is_412() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    app.delete("/users/1").await;
    let password = json!({ "password": PASSWORD });
    for method in &CHANGES {
        for body in [&name("Ева"), &password] {
            for tags in ["\"1\"", "*"] {
                let answer = if_match(&app, method, "/users/1", body, tags).await;
                answer.assert_problem(412, "precondition_failed");
                assert!(!answer.headers.contains_key(ETAG), "{answer:?}");
            }
            let change = request(&app, method, "/users/1", body);
            let answer = Answer::of(change.header(IF_NONE_MATCH, "*")).await;
            answer.assert_problem(404, "user_not_found");
        }
    }
    let read = if_match(&app, &Method::GET, "/users/1", &Value::Null, "*").await;
    read.assert_problem(404, "user_not_found");
}

#[tokio::test]
async fn a_refused_or_empty_change_writes_nothing() {
    for group_commit in ["true", "false"] {
        let world = World::new().await;
        let mut observer = Observer::new(&world).await;
        let app = App::start(&world)
            .with(&[("GROUP_COMMIT", group_commit)])
            .await;
        app.create_user("Анна").await;
        observer.next_bodies(1).await;
        let rows = "SELECT ctid::text || ' ' || version FROM users";
        let before: String = world.value(rows).await;
        let password = json!({ "password": PASSWORD });
        for method in &CHANGES {
            for body in [&name("Ева"), &password] {
                let stale = if_match(&app, method, "/users/1", body, "\"2\"").await;
                assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED);
            }
        }
        for (method, body) in [(Method::PUT, name("Анна")), (Method::PATCH, json!({}))] {
            let unchanged = if_match(&app, &method, "/users/1", &body, "\"1\"").await;
            assert_eq!(unchanged.status, StatusCode::OK);
        }
        let known = app.request(Method::GET, "/users/1");
        let known = Answer::of(known.header(IF_NONE_MATCH, "*")).await;
        assert_eq!(known.status, StatusCode::NOT_MODIFIED);
        assert_eq!(world.value::<String>(rows).await, before);
        // The next event is that of the next change, with the next version.
        app.put("/users/1", &name("Яна")).await;
        assert_eq!(observer.next_bodies(1).await[0]["version"], 2);
        let positions: i64 = world.value("SELECT last_value FROM outbox_seq_seq").await;
        assert_eq!(positions, 2);
    }
}

#[tokio::test]
async fn a_stale_tag_with_a_new_password_costs_no_hash() {
    let world = World::new().await;
    // This many concurrent hashes could not all get a core within a millisecond.
    let app = App::start(&world)
        .with(&[("PASSWORD_HASH_WAIT_MS", "1")])
        .await;
    add_users(&world, 1).await;
    let body = json!({ "password": PASSWORD });
    for method in [Method::PUT, Method::PATCH] {
        let stale = (0..200).map(|_| if_match(&app, &method, "/users/1", &body, "\"2\""));
        for answer in join_all(stale).await {
            answer.assert_problem(412, "precondition_failed");
        }
    }
}

const VERSIONS: &str = "SELECT coalesce(array_agg(version), '{}') FROM users";

/// One user, of version 1.
async fn start_over(world: &World) {
    sqlx::raw_sql("TRUNCATE users RESTART IDENTITY")
        .execute(&world.pool)
        .await
        .unwrap();
    add_users(world, 1).await;
}

/// Sends two changes with one tag at once, for each pair of methods, and expects that one is 2xx and
/// one 412.
async fn race(world: &World, first: &App, second: &App, rounds: u32) {
    let password = json!({ "password": PASSWORD });
    for round in 0..rounds {
        for one in &CHANGES {
            for other in &CHANGES {
                start_over(world).await;
                let path = "/users/1";
                let named = name("Ева");
                // Now and then one of them waits for a hash.
                let body = if round % 10 == 0 { &password } else { &named };
                let surname = json!({"surname": "Ким"});
                let answers = tokio::join!(
                    if_match(first, one, path, body, "\"1\""),
                    if_match(second, other, path, &surname, "\"1\""),
                );
                let mut statuses = [answers.0.status.as_u16(), answers.1.status.as_u16()];
                statuses.sort_unstable();
                assert!(
                    matches!(statuses, [200 | 204, 412]),
                    "{one} {other}: {statuses:?}"
                );
                let versions: Vec<i64> = world.value(VERSIONS).await;
                let is_deleted = answers.0.status == 204 || answers.1.status == 204;
                let expected: &[i64] = if is_deleted { &[] } else { &[2] };
                assert_eq!(versions, expected, "{one} {other}");
            }
        }
    }
}

#[tokio::test]
async fn of_two_changes_with_one_tag_exactly_one_is_412() {
    for group_commit in ["true", "false"] {
        let (world, app) = start_with(&[("GROUP_COMMIT", group_commit)]).await;
        race(&world, &app, &app, 14).await;
        let other = App::start(&world)
            .with(&[("GROUP_COMMIT", group_commit)])
            .await;
        race(&world, &app, &other, 14).await;
    }
}

#[tokio::test]
async fn many_editors_of_one_user_lose_no_change() {
    let (_world, app) = start().await;
    app.create_user("0").await;
    // Each adds 1 to a number in the name, and starts over when another was faster.
    let add = async || {
        loop {
            let user = app.get("/users/1").await;
            let number: u32 = user.body["name"].as_str().unwrap().parse().unwrap();
            let next = name(&(number + 1).to_string());
            let tag = user.header("etag");
            match if_match(&app, &Method::PATCH, "/users/1", &next, tag)
                .await
                .status
            {
                StatusCode::OK => return,
                status => assert_eq!(status, StatusCode::PRECONDITION_FAILED),
            }
        }
    };
    join_all((0..30).map(|_| add())).await;
    let user = app.get("/users/1").await.body;
    assert_eq!(
        (&user["name"], &user["version"]),
        (&json!("30"), &json!(31))
    );
}

#[tokio::test]
async fn where_if_match_is_required_a_change_without_it_is_428() {
    let (_world, app) = start_with(&[("REQUIRE_IF_MATCH", "true")]).await;
    app.create_user("Анна").await;
    for method in &CHANGES {
        let bare = request(&app, method, "/users/1", &name("Ева"));
        Answer::of(bare)
            .await
            .assert_problem(428, "precondition_required");
        let other = request(&app, method, "/users/1", &name("Ева"));
        let other = Answer::of(other.header(IF_NONE_MATCH, "\"7\"")).await;
        other.assert_problem(428, "precondition_required");
    }
    assert_eq!(app.get("/users/1").await.body["version"], 1);
    let any = if_match(&app, &Method::PUT, "/users/1", &name("Ева"), "*").await;
    assert_eq!(any.status, StatusCode::OK);
    let newest = if_match(&app, &Method::DELETE, "/users/1", &Value::Null, "\"2\"").await;
    assert_eq!(newest.status, StatusCode::NO_CONTENT);
    let document = app.get("/openapi.json").await.body;
    let delete = &document["paths"]["/users/{id}"]["delete"];
    assert!(delete["responses"]["428"].is_object());
    assert_eq!(delete["parameters"][1]["required"], true, "{delete:#}");
}

#[tokio::test]
async fn a_patch_changes_the_given_fields_and_publishes() {
    let (_world, mut observer, app) = start_observed().await;
    let created = app.post("/users", &new_user("Анна")).await.body;
    let patched = patch(&app, "/users/1/", &json!({"name": " Яна "})).await;
    assert_eq!(patched.status, StatusCode::OK);
    assert_eq!(
        (&patched.body["name"], &patched.body["surname"]),
        (&json!("Яна"), &created["surname"])
    );
    assert_eq!(app.get("/users/1").await.body, patched.body);
    for unchanged in [json!({}), json!({"name": "Яна"})] {
        let answer = patch(&app, "/users/1", &unchanged).await;
        assert_eq!(
            (answer.status, &answer.body),
            (StatusCode::OK, &patched.body)
        );
    }
    let password = patch(&app, "/users/1", &json!({ "password": PASSWORD })).await;
    assert_eq!(password.body["version"], 3);
    let events = observer.next_bodies(3).await;
    let versions: Vec<_> = events.iter().map(|event| &event["version"]).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(events[1]["event_type"], "user.updated");
    patch(&app, "/users/9", &name("Яна"))
        .await
        .assert_problem(404, "user_not_found");
}

#[tokio::test]
async fn a_patch_names_each_field_that_is_null_or_wrong() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    let body = json!({"name": null, "surname": "", "password": null, "id": 7});
    let answer = patch(&app, "/users/1", &body).await;
    answer.assert_problem(422, "validation_failed");
    assert_eq!(
        answer.faults(),
        [
            ("/id", "unknown_field"),
            ("/name", "required"),
            ("/surname", "blank"),
            ("/password", "required"),
        ]
    );
    for body in [json!([]), json!(null), json!("x")] {
        let answer = patch(&app, "/users/1", &body).await;
        answer.assert_problem(422, "validation_failed");
        assert_eq!(answer.faults(), [("", "invalid_type")]);
    }
    assert_eq!(app.get("/users/1").await.body["version"], 1);
}

#[tokio::test]
async fn a_patch_of_another_media_type_is_415_and_names_its_own() {
    let (_world, app) = start().await;
    app.create_user("Анна").await;
    for media_type in [
        "application/json",
        "application/json-patch+json",
        "text/plain",
    ] {
        let patch = app.request(Method::PATCH, "/users/1");
        let patch = patch.header("content-type", media_type);
        let answer = Answer::of(patch.json(&name("Яна"))).await;
        answer.assert_problem(415, "unsupported_media_type");
        assert_eq!(
            answer.header("accept-patch"),
            "application/merge-patch+json"
        );
    }
    let put = app.request(Method::PUT, "/users/1");
    let put = put.header("content-type", "application/merge-patch+json");
    Answer::of(put.json(&name("Яна")))
        .await
        .assert_problem(415, "unsupported_media_type");
}
