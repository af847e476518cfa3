# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# Which PostgreSQL and RabbitMQ the service gets: the settings', Compose's, or a private pair. Sourced by setup.sh.

MANAGEMENT_URL=''

bring_up() {
  local backend=${SETUP_BACKEND:-auto}
  case $backend in
    auto) use_settings || use_compose || use_private ;;
    url) use_settings || fail "DATABASE_URL and RABBITMQ_URL must both be set and answer" ;;
    compose) use_compose || fail "Docker Compose cannot be used: is the engine running?" ;;
    local) use_private ;;
    *) fail "SETUP_BACKEND is auto, url, compose or local, not '$backend'" ;;
  esac
  export DATABASE_URL RABBITMQ_URL
}

use_settings() {
  local database broker amqp_port=5672
  database=$(setting DATABASE_URL) broker=$(setting RABBITMQ_URL)
  [ -n "$database" ] && [ -n "$broker" ] || return 1
  case $broker in amqps:*) amqp_port=5671 ;; esac
  if ! url_answers "$database" 5432; then
    say "the server of DATABASE_URL does not answer: trying other ways"
  elif ! url_answers "$broker" "$amqp_port"; then
    say "the server of RABBITMQ_URL does not answer: trying other ways"
  else
    DATABASE_URL=$database RABBITMQ_URL=$broker
    say "the servers of DATABASE_URL and RABBITMQ_URL both answer"
    return
  fi
  return 1
}

# use_servers DATABASE_URL RABBITMQ_URL MANAGEMENT_URL
use_servers() {
  DATABASE_URL=$1 RABBITMQ_URL=$2 MANAGEMENT_URL=$3
  # One for another server must not come from .env.
  export DATABASE_DIRECT_URL=''
}

compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

docker_answers() { command -v docker >/dev/null && timeout 5 docker info >/dev/null 2>&1; }

compose_is_healthy() {
  local service container
  for service in postgres rabbitmq; do
    container=$(compose ps -q "$service") && [ -n "$container" ] || return 1
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$container")" = healthy ] || return 1
  done
}

# The ports that docker-compose.yml publishes.
compose_ports_are_free() {
  local port
  for port in 5432 5672 15672; do
    if port_answers 127.0.0.1 "$port"; then
      say "Docker Compose needs port $port, which is taken: trying other ways"
      return 1
    fi
  done
}

use_compose() {
  docker_answers || return 1
  if compose_is_healthy 2>/dev/null; then
    say "PostgreSQL and RabbitMQ are up already, in Docker"
  else
    compose_ports_are_free || return 1
    begin "Docker Compose"
    if ! compose up -d postgres rabbitmq >&2 || ! patience=120 await compose_is_healthy; then
      compose logs --tail 20 >&2 || true
      compose down >&2 || true
      say "Docker Compose could not start the servers: trying other ways"
      return 1
    fi
    started_compose=yes
    finish "PostgreSQL on 127.0.0.1:5432, RabbitMQ on 127.0.0.1:5672, in Docker"
  fi
  : >"$state/compose"
  use_servers postgresql://postgres:postgres@127.0.0.1:5432/userdb amqp://guest:guest@127.0.0.1:5672/ \
    http://127.0.0.1:15672
}

compose_down() {
  [ -f "$state/compose" ] || return 0
  docker_answers || fail "the Docker engine does not answer: 'docker compose down' is left to do"
  if [ "$1" = yes ]; then compose down --volumes >&2; else compose down >&2; fi
  rm -f "$state/compose"
}

use_private() {
  local root
  root=$(data_root)
  dev=$root/dev
  mkdir -p "$dev"
  chmod 755 "$root" "$dev"
  # Two runs at once share one pair; the second waits here for the first.
  exec 9>"$state/lock"
  flock 9
  if pair_is_up "$dev"; then
    say "PostgreSQL and RabbitMQ are up already"
  else
    started_dev=yes
    start_pair "$dev" dev
  fi
  exec 9>&-
  # shellcheck disable=SC2153 # read_ports sets them
  use_servers "postgresql://postgres:postgres@127.0.0.1:$PG_PORT/userdb" "amqp://guest:guest@127.0.0.1:$AMQP_PORT/" \
    "http://127.0.0.1:$MANAGEMENT_PORT"
}

service_pid() {
  local pid
  pid=$(cat "$state/service.pid" 2>/dev/null || true)
  if alive "$pid" && grep -qz 'user-management-api$' "/proc/$pid/cmdline" 2>/dev/null; then echo "$pid"; fi
}

stop_service() {
  local pid
  pid=$(service_pid)
  if [ -n "$pid" ]; then
    begin "stop the service"
    kill "$pid" 2>/dev/null || true
    patience=30 await gone "$pid" || kill -s KILL "$pid"
    finish "stopped the service"
  fi
  rm -f "$state/service.pid"
}

row() { printf '%-11s %-5s %-58s %-8s %s\n' "$@"; }

show_status() {
  local all=0 service postgres='' rabbitmq='' folder
  folder=$(data_root)/dev
  [ ! -f "$folder/ports" ] || read_ports "$folder"
  service=$(service_pid) postgres=$(postgres_pid "$folder") rabbitmq=$(rabbitmq_pid "$folder")
  row WHAT STATE URL PID 'DATA AND LOG'
  if [ -n "$service" ]; then
    row service up "$(service_url)" "$service" 'its standard output'
  else
    row service down - - - && all=3
  fi
  if [ -f "$state/compose" ] && docker_answers && compose_is_healthy; then
    row PostgreSQL up postgresql://postgres:postgres@127.0.0.1:5432/userdb docker 'docker compose logs postgres'
    row RabbitMQ up amqp://guest:guest@127.0.0.1:5672/ docker 'docker compose logs rabbitmq'
    return $all
  fi
  if [ -n "$postgres" ] && port_answers 127.0.0.1 "$PG_PORT"; then
    row PostgreSQL up "postgresql://postgres:postgres@127.0.0.1:$PG_PORT/userdb" "$postgres" "$folder/postgres/{data,log}"
  else
    row PostgreSQL down - - - && all=3
  fi
  if [ -n "$rabbitmq" ] && port_answers 127.0.0.1 "$AMQP_PORT"; then
    row RabbitMQ up "amqp://guest:guest@127.0.0.1:$AMQP_PORT/" "$rabbitmq" "$folder/rabbitmq/{mnesia,log}"
    row management up "http://guest:guest@127.0.0.1:$MANAGEMENT_PORT" "$rabbitmq" -
  else
    row RabbitMQ down - - - && all=3
  fi
  return $all
}
