//! The candidates that run as servers of their own: two plain axum services.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::Serialize;
use sqlx::postgres::PgPoolOptions;
use sqlx::{FromRow, PgPool};
use tokio::net::TcpListener;

use crate::Outcome;

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Plain {
    /// Answers 200 on a user's path and does nothing else.
    Empty,
    /// One query per request on a pool of ten that does not test connections before use; no log, no
    /// limits.
    Sqlx,
}

/// The same number as in the service's pool.
const CONNECTIONS: u32 = 10;

#[derive(Serialize, FromRow)]
struct User {
    id: i64,
    name: String,
    surname: String,
    created_at: chrono::DateTime<chrono::Utc>,
    updated_at: chrono::DateTime<chrono::Utc>,
}

/// Serves until it is killed; its first line on standard output is its address.
pub async fn serve(candidate: Plain, database: &str) -> Outcome<()> {
    let router = match candidate {
        Plain::Empty => Router::new().route("/users/{id}", get(|| async {})),
        Plain::Sqlx => {
            let pool = PgPoolOptions::new()
                .max_connections(CONNECTIONS)
                .test_before_acquire(false);
            let pool = pool.connect(database).await?;
            Router::new()
                .route("/users/{id}", get(user))
                .with_state(pool)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    Ok(axum::serve(listener, router).await?)
}

async fn user(State(pool): State<PgPool>, Path(id): Path<i64>) -> Result<Json<User>, StatusCode> {
    sqlx::query_as("SELECT id, name, surname, created_at, updated_at FROM users WHERE id = $1")
        .bind(id)
        .fetch_optional(&pool)
        .await
        .map_err(|_error| StatusCode::INTERNAL_SERVER_ERROR)?
        .map(Json)
        .ok_or(StatusCode::NOT_FOUND)
}
