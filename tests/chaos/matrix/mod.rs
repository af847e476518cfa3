//! The slow rows of the fault matrix. One at a time: they share the servers that they stop.

mod broker;
mod cluster;
mod database;
mod network;
mod relay;
mod replicas;
