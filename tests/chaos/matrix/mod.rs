//! The slow rows of the fault matrix. They run one at a time, because they share the servers that
//! they stop.

mod broker;
mod cluster;
mod database;
mod network;
mod relay;
mod replicas;
mod restore;
mod returns;
