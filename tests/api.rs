//! The contract, as tests against the real binary on real PostgreSQL and RabbitMQ. Each test has
//! its own database and virtual host. The test names are the promises.

mod api {
    mod access;
    mod broker_faults;
    mod check;
    mod coalesced_reads;
    mod commands;
    mod connections;
    mod database_faults;
    mod database_states;
    mod dead_letters;
    mod errors;
    mod events;
    mod examples;
    mod fairness;
    mod faults;
    mod floods;
    mod foreign_rows;
    mod grouped_writes;
    mod heads;
    mod least_privilege;
    mod lifecycle;
    mod metrics;
    mod migrations;
    mod openapi;
    mod operator;
    mod operators_port;
    mod original;
    mod poison;
    mod preconditions;
    mod read_faults;
    mod replicas;
    mod restore;
    mod strangers;
    mod tls;
    mod trace_id;
    mod users;
}
