#!/usr/bin/env bash
# The fault tests' operations on a pair of servers. FOLDER is the pair's, as in TEST_SERVERS, or a cluster node's.
#   scripts/server.sh FOLDER signal postgres|rabbitmq SIGNAL   sends it, and waits for the end unless it is STOP or CONT
#   scripts/server.sh FOLDER start postgres|rabbitmq           starts it, and waits until it answers
#   scripts/server.sh FOLDER rabbitmqctl ARGUMENTS…
#   scripts/server.sh FOLDER standby                           starts a standby of the PostgreSQL; prints folder and port
#   scripts/server.sh FOLDER pooler [LINE]                     starts pgbouncer in transaction mode, with a line of
#                                                              configuration; prints its URL
#   scripts/server.sh FOLDER adopt DATA                        starts a server on a physical backup; prints folder and port
#   scripts/server.sh FOLDER commands AT SERVICE COMMANDS      runs a guide's commands in the folder AT, with PostgreSQL's programs
#                                                              and those of the folder SERVICE
#   scripts/server.sh FOLDER cluster                           starts three RabbitMQ nodes; prints folder, AMQP port and
#                                                              management port of each
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
. scripts/common.sh
# shellcheck source=scripts/packages.sh
. scripts/packages.sh
# shellcheck source=scripts/servers.sh
. scripts/servers.sh

folder=$1 action=$2
shift 2
read_ports "$folder"

signal() {
  local pid
  pid=$("$1_pid" "$folder")
  [ -n "$pid" ] || fail "there is no $1 in $folder"
  kill -s "$2" "$pid"
  case $2 in
    STOP | CONT) ;;
    *) await gone "$pid" || fail "$1 did not end" ;;
  esac
}

start() {
  case $1 in
    postgres) start_postgres "$folder" chaos || fail "PostgreSQL did not start: see $folder/postgres/log" ;;
    rabbitmq)
      start_rabbitmq "$folder"
      await rabbitmq_answers "$folder" || fail "RabbitMQ did not start: see $folder/rabbitmq/out"
      ;;
  esac
}

rabbitmqctl() {
  rabbitmq_program "$folder" rabbitmqctl --quiet "$@"
}

standby() {
  local pair source bin
  pair=$folder/standby-$(random_word)
  bin=$(postgres_bin)
  source="host=127.0.0.1 port=$PG_PORT user=postgres"
  mkdir -p "$pair/postgres/data"
  prepare_postgres_folder "$pair/postgres"
  give_to_postgres "$pair/postgres/data"
  PGPASSWORD=$PG_PASSWORD folder=$pair/postgres postgres_program pg_basebackup -D "$pair/postgres/data" -R -c fast -d "$source"
  start_copy "$pair"
}

pooler() {
  need_tool pgbouncer >&2
  start_pgbouncer "$folder" "${1:-}"
  printf '%s\n' "$TEST_POOLER_URL"
}

adopt() {
  local pair
  pair=$folder/restored-$(random_word)
  prepare_postgres_folder "$pair/postgres"
  mv "$1" "$pair/postgres/data"
  give_to_postgres "$pair/postgres/data"
  [ "$(id -u)" != 0 ] || chown -R "$(postgres_user)" "$pair/postgres/data"
  start_copy "$pair"
}

# start_copy FOLDER: starts a server on the data in it; prints folder and port.
start_copy() {
  choose_ports "$1"
  read_ports "$1"
  : >"$1/postgres/initialised"
  start_postgres "$1" chaos || fail "PostgreSQL did not start: see $1/postgres/log"
  printf '%s %s\n' "$1" "$PG_PORT"
}

commands() {
  export_package postgresql
  cd "$1"
  PATH=$2:$(postgres_bin):$PATH bash -euo pipefail -c "$3"
}

cluster() {
  local node nodes=(1 2 3) epmd cookie
  cookie=$(random_word)
  free_port epmd
  for node in "${nodes[@]}"; do
    local at=$folder/cluster/$node
    mkdir -p "$at/rabbitmq"
    cp -p "$folder/secrets" "$at/secrets"
    [ ! -f "$folder/rabbitmq-package" ] || cp "$folder/rabbitmq-package" "$at/rabbitmq-package"
    choose_ports "$at"
    sed -i "s/^EPMD_PORT=.*/EPMD_PORT=$epmd/" "$at/ports"
    echo "rabbit$node" >"$at/node"
    (umask 077 && printf %s "$cookie" >"$at/rabbitmq/.erlang.cookie")
    {
      echo 'cluster_formation.peer_discovery_backend = classic_config'
      echo 'cluster_partition_handling = pause_minority'
      printf "cluster_formation.classic_config.nodes.%s = rabbit%s@localhost\n" 1 1 2 2 3 3
    } >"$at/cluster.conf"
    read_ports "$at"
    printf '%s %s %s\n' "$at" "$AMQP_PORT" "$MANAGEMENT_PORT"
    start_rabbitmq "$at"
  done
  for node in "${nodes[@]}"; do
    await rabbitmq_answers "$folder/cluster/$node" || fail "node $node did not start: see $folder/cluster/$node/rabbitmq/out"
  done
}

"$action" "$@"
