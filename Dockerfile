FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# Builds the dependencies in a layer of their own, which stays cached until Cargo.toml, Cargo.lock or crates/ changes.
COPY Cargo.toml Cargo.lock ./
COPY crates crates
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked && rm -r src
COPY migrations migrations
COPY .sqlx .sqlx
COPY src src
COPY LICENSE-MIT LICENSE-APACHE ./
# cargo compares modification times, and the copied files may be older than the stand-ins.
RUN touch src/main.rs src/lib.rs && SQLX_OFFLINE=true cargo build --release --locked

FROM debian:bookworm-slim
# For TLS to PostgreSQL and RabbitMQ.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/user-management-api /usr/local/bin/user-management-api
# Numeric, so that Kubernetes can verify that it is not root (`runAsNonRoot`).
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["/usr/local/bin/user-management-api", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/user-management-api"]
