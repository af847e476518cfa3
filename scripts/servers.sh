# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# A private pair of PostgreSQL and RabbitMQ: a folder with `ports`, `postgres/` and `rabbitmq/`, on ports of its own, out of
# the way of whatever the system runs. Sourced by setup.sh.

dev=$state/dev

# As root, PostgreSQL runs as a user of its own, as it refuses root.
postgres_user() {
  if [ "$(id -u)" != 0 ]; then id -un; elif id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

as_postgres() {
  local user home=$1
  user=$(postgres_user)
  shift
  if [ "$(id -u)" = 0 ]; then
    setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups env HOME="$home" "$@"
  else
    "$@"
  fi
}

# Where the pairs' data is: .local, unless PostgreSQL's user may not go there.
data_root() {
  local root=$state
  mkdir -p "$state"
  if ! as_postgres / test -x "$state"; then
    root=/var/tmp/user-management-api-$(printf %s "$state" | cksum | cut -d' ' -f1)
    mkdir -p "$root"
    [ -e "$state/data" ] || ln -s "$root" "$state/data"
  fi
  printf '%s' "$root"
}

choose_ports() {
  local name
  for name in PG_PORT AMQP_PORT MANAGEMENT_PORT DIST_PORT EPMD_PORT CTL_PORT; do
    free_port "$name"
    printf '%s=%s\n' "$name" "${!name}"
  done >"$1/ports.new"
  mv "$1/ports.new" "$1/ports"
}

read_ports() {
  # shellcheck disable=SC1091
  . "$1/ports"
}

postgres_pid() { head -n 1 "$1/postgres/data/postmaster.pid" 2>/dev/null || true; }
rabbitmq_pid() { tr -d '[:space:]' 2>/dev/null <"$1/rabbitmq/pid" || true; }

pair_is_up() {
  [ -f "$1/ports" ] || return 1
  read_ports "$1"
  alive "$(postgres_pid "$1")" && alive "$(rabbitmq_pid "$1")" &&
    port_answers 127.0.0.1 "$PG_PORT" && port_answers 127.0.0.1 "$AMQP_PORT" && port_answers 127.0.0.1 "$MANAGEMENT_PORT"
}

# start_pair FOLDER dev|test [POSTGRES_VERSION]
start_pair() {
  local pair=$1 kind=$2 version=${3:-} attempt
  need_servers "$version"
  begin "PostgreSQL and RabbitMQ"
  for attempt in 1 2 3; do
    stop_pair "$pair" quietly
    # Stable ports are convenient, as long as nobody took them meanwhile.
    if [ "$attempt" != 1 ] || [ ! -f "$pair/ports" ]; then choose_ports "$pair"; fi
    read_ports "$pair"
    start_rabbitmq "$pair"
    if start_postgres "$pair" "$kind" "$version" && await rabbitmq_answers "$pair"; then
      finish "PostgreSQL $(cat "$pair/postgres/data/PG_VERSION") on 127.0.0.1:$PG_PORT, RabbitMQ on 127.0.0.1:$AMQP_PORT"
      return
    fi
  done
  tail -n 20 "$pair/postgres/log" "$pair/rabbitmq/out" >&2 || true
  fail "PostgreSQL and RabbitMQ did not start: see above, and the logs in $pair"
}

start_postgres() {
  local pair=$1 kind=$2 bin folder=$1/postgres
  bin=$(postgres_bin "$3")
  mkdir -p "$folder"
  if [ ! -f "$folder/data/PG_VERSION" ]; then
    rm -rf "$folder/data"
    echo postgres >"$folder/password"
    [ "$(id -u)" != 0 ] || chown -R "$(postgres_user)" "$folder"
    as_postgres "$folder" "$bin/initdb" -D "$folder/data" -U postgres --auth=scram-sha-256 --pwfile="$folder/password" \
      -E UTF8 --locale=C.UTF-8 -N >"$folder/initdb.log" 2>&1 || { cat "$folder/initdb.log" >&2 && return 1; }
  fi
  local -a options=(
    -c "port=$PG_PORT" -c "listen_addresses=127.0.0.1" -c "unix_socket_directories="
    -c max_connections=300 -c "log_timezone=UTC"
  )
  # Nothing in a throw-away server is worth a wait for the disk.
  [ "$kind" = dev ] || options+=(-c fsync=off -c synchronous_commit=off -c full_page_writes=off)
  : >"$folder/log"
  [ "$(id -u)" != 0 ] || chown "$(postgres_user)" "$folder/log"
  SETUP_PAIR=$pair as_postgres "$folder" setsid "$bin/postgres" -D "$folder/data" "${options[@]}" \
    </dev/null >>"$folder/log" 2>&1 9>&- &
  local launcher=$!
  disown
  await postgres_answers "$pair" "$launcher" || return 1
  if [ "$kind" = dev ] && [ ! -f "$folder/created" ]; then
    echo 'CREATE DATABASE userdb;' | PGPASSWORD=postgres "$bin/psql" -q -h 127.0.0.1 -p "$PG_PORT" -U postgres postgres &&
      : >"$folder/created"
  fi
}

postgres_answers() {
  ! grep -q 'database system is ready' "$1/postgres/log" || return 0
  alive "$2" || hopeless=yes
  return 1
}

rabbitmq_environment() {
  local folder=$1/rabbitmq
  cat <<ENVIRONMENT
HOME=$folder
SETUP_PAIR=$1
RABBITMQ_NODENAME=rabbit$AMQP_PORT@localhost
RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
RABBITMQ_NODE_PORT=$AMQP_PORT
RABBITMQ_DIST_PORT=$DIST_PORT
RABBITMQ_CTL_DIST_PORT_MIN=$CTL_PORT
RABBITMQ_CTL_DIST_PORT_MAX=$((CTL_PORT + 9))
ERL_EPMD_PORT=$EPMD_PORT
ERL_EPMD_ADDRESS=127.0.0.1
RABBITMQ_MNESIA_BASE=$folder/mnesia
RABBITMQ_LOG_BASE=$folder/log
RABBITMQ_PID_FILE=$folder/pid
RABBITMQ_CONFIG_FILE=$folder/rabbitmq.conf
RABBITMQ_ENABLED_PLUGINS_FILE=$folder/enabled_plugins
RABBITMQ_CONF_ENV_FILE=$folder/none
RABBITMQ_ADVANCED_CONFIG_FILE=$folder/none.config
RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}
ENVIRONMENT
}

start_rabbitmq() {
  local pair=$1 folder=$1/rabbitmq
  local -a environment
  mkdir -p "$folder"
  rm -f "$folder/pid"
  echo '[rabbitmq_management].' >"$folder/enabled_plugins"
  printf '%s\n' "listeners.tcp.default = 127.0.0.1:$AMQP_PORT" "management.tcp.ip = 127.0.0.1" \
    "management.tcp.port = $MANAGEMENT_PORT" "disk_free_limit.absolute = 100MB" >"$folder/rabbitmq.conf"
  # The node's name, and with it its data, depends on the port.
  [ "$(cat "$folder/port" 2>/dev/null)" = "$AMQP_PORT" ] || rm -rf "$folder/mnesia"
  echo "$AMQP_PORT" >"$folder/port"
  mapfile -t environment < <(rabbitmq_environment "$pair")
  env "${environment[@]}" setsid "$(rabbitmq_bin)/rabbitmq-server" </dev/null >"$folder/out" 2>&1 9>&- &
  rabbitmq_launcher=$!
  disown
}

rabbitmq_answers() {
  if port_answers 127.0.0.1 "$AMQP_PORT" && port_answers 127.0.0.1 "$MANAGEMENT_PORT" && [ -s "$1/rabbitmq/pid" ]; then
    return 0
  fi
  alive "$rabbitmq_launcher" || hopeless=yes
  return 1
}

# stop_pair FOLDER [quietly]
stop_pair() {
  local pair=$1 quietly=${2:-} postgres rabbitmq
  postgres=$(postgres_pid "$pair") rabbitmq=$(rabbitmq_pid "$pair")
  if alive "$postgres" || alive "$rabbitmq"; then
    [ -n "$quietly" ] || begin "stop PostgreSQL and RabbitMQ"
    ! alive "$rabbitmq" || kill "$rabbitmq" 2>/dev/null || true
    ! alive "$postgres" || kill -s INT "$postgres" 2>/dev/null || true
    [ -z "$rabbitmq" ] || await gone "$rabbitmq" || true
    [ -z "$postgres" ] || await gone "$postgres" || true
    [ -n "$quietly" ] || finish "stopped PostgreSQL and RabbitMQ"
  fi
  sweep "$pair"
  rm -f "$pair/rabbitmq/pid"
  ! gone "$postgres" || rm -f "$pair/postgres/data/postmaster.pid"
}

# Ends whatever of the pair is still there: epmd, which outlives RabbitMQ, and what a killed server left behind.
sweep() {
  local process
  for process in /proc/[0-9]*; do
    if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "SETUP_PAIR=$1"; then
      kill -s KILL "${process#/proc/}" 2>/dev/null || true
    fi
  done
  return 0
}
