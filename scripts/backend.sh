# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# Which PostgreSQL and RabbitMQ the service gets: the settings', Compose's, or a private pair. Sourced by setup.sh.

MANAGEMENT_URL=''

bring_up() {
  local backend=${SETUP_BACKEND:-auto}
  case $backend in
    auto) use_settings || use_compose || use_private ;;
    url) use_settings || fail "DATABASE_URL and RABBITMQ_URL do not both answer" ;;
    compose) use_compose || fail "Docker Compose cannot be used: is the engine running?" ;;
    local) use_private ;;
    *) fail "SETUP_BACKEND is url, compose or local, not '$backend'" ;;
  esac
  export DATABASE_URL RABBITMQ_URL
}

use_settings() {
  local database broker
  database=$(setting DATABASE_URL) broker=$(setting RABBITMQ_URL)
  [ -n "$database" ] && [ -n "$broker" ] || return 1
  if ! url_answers "$database" 5432; then
    say "the server of DATABASE_URL does not answer: trying other ways"
  elif ! url_answers "$broker" 5672; then
    say "the server of RABBITMQ_URL does not answer: trying other ways"
  else
    DATABASE_URL=$database RABBITMQ_URL=$broker
    say "DATABASE_URL and RABBITMQ_URL both answer"
    return
  fi
  return 1
}

compose() {
  if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

docker_answers() { command -v docker >/dev/null && timeout 5 docker info >/dev/null 2>&1; }

compose_is_healthy() {
  local container
  for container in $(compose ps -q postgres rabbitmq); do
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$container")" = healthy ] || return 1
  done
}

use_compose() {
  docker_answers || return 1
  begin "Docker Compose"
  if ! compose up -d postgres rabbitmq 1>&2 9>&- || ! await compose_is_healthy; then
    say "Docker Compose could not start the servers: trying other ways"
    return 1
  fi
  : >"$state/compose"
  DATABASE_URL=postgresql://postgres:postgres@127.0.0.1:5432/userdb
  RABBITMQ_URL=amqp://guest:guest@127.0.0.1:5672/
  MANAGEMENT_URL=http://127.0.0.1:15672
  finish "PostgreSQL and RabbitMQ in Docker"
}

compose_down() {
  if [ -f "$state/compose" ] && docker_answers; then
    if [ "$1" = yes ]; then compose down --volumes 1>&2; else compose down 1>&2; fi
    rm -f "$state/compose"
  fi
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
  DATABASE_URL=postgresql://postgres:postgres@127.0.0.1:$PG_PORT/userdb
  RABBITMQ_URL=amqp://guest:guest@127.0.0.1:$AMQP_PORT/
  MANAGEMENT_URL=http://127.0.0.1:$MANAGEMENT_PORT
}

stop_service() {
  local pid
  pid=$(cat "$state/service.pid" 2>/dev/null || true)
  if alive "$pid" && [[ $(tr '\0' ' ' <"/proc/$pid/cmdline") == *user-management-api* ]]; then
    begin "stop the service"
    kill "$pid"
    await gone "$pid" || kill -s KILL "$pid"
    finish "stopped the service"
  fi
}

row() { printf '%-11s %-5s %-58s %-8s %s\n' "$@"; }

show_status() {
  local all=0 service postgres rabbitmq
  [ -f "$dev/ports" ] || dev=$(data_root)/dev
  service=$(cat "$state/service.pid" 2>/dev/null || true)
  row WHAT STATE URL PID 'DATA AND LOGS'
  if alive "$service"; then
    row service up "http://$(setting HOST 127.0.0.1):$(setting PORT 8000)" "$service" 'its standard output'
  else
    row service down - - - && all=3
  fi
  if [ ! -f "$dev/ports" ]; then
    row PostgreSQL down - - -
    row RabbitMQ down - - -
    return 3
  fi
  read_ports "$dev"
  postgres=$(postgres_pid "$dev") rabbitmq=$(rabbitmq_pid "$dev")
  if alive "$postgres" && port_answers 127.0.0.1 "$PG_PORT"; then
    row PostgreSQL up "postgresql://postgres:postgres@127.0.0.1:$PG_PORT/userdb" "$postgres" "$dev/postgres"
  else
    row PostgreSQL down - - "$dev/postgres" && all=3
  fi
  if alive "$rabbitmq" && port_answers 127.0.0.1 "$AMQP_PORT"; then
    row RabbitMQ up "amqp://guest:guest@127.0.0.1:$AMQP_PORT/" "$rabbitmq" "$dev/rabbitmq"
    row '' '' "http://guest:guest@127.0.0.1:$MANAGEMENT_PORT (management)" '' ''
  else
    row RabbitMQ down - - "$dev/rabbitmq" && all=3
  fi
  return $all
}
