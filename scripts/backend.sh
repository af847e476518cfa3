# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# Which PostgreSQL and RabbitMQ the service gets, and the record of what was started for it. Sourced by setup.sh.
#
# The checkout has two locks: fd 9, held while servers start or stop, and fd 8, shared by all that use them; a process that
# can take fd 8 exclusively is the last user. A third, fd 7, is held for each port that a service of this checkout listens on.

backend=''
MANAGEMENT_URL=''

# The backend that the settings ask for, or auto.
wanted_backend() {
  if [ "${SETUP_BACKEND:-auto}" != auto ]; then
    echo "$SETUP_BACKEND"
  elif [ -n "$(setting DATABASE_URL)$(setting RABBITMQ_URL)" ]; then
    echo url
  else
    echo auto
  fi
}

# choose_servers: sets $backend, and for `url` the two addresses.
choose_servers() {
  backend=$(wanted_backend)
  case $backend in
    auto)
      if { [ -n "$(postgres_bin)" ] && [ -n "$(rabbitmq_bin)" ]; } || can_unpack || ! docker_answers; then
        backend=local
      else
        backend=compose
      fi
      ;;
    url | local | compose) ;;
    *) fail "SETUP_BACKEND is url, local or compose, not '$backend'" ;;
  esac
  case $backend in
    url) use_settings ;;
    local) say "using private servers under .local/" ;;
    compose) say "using docker compose" && { docker_answers || fail "the Docker engine does not answer: start it, or unset SETUP_BACKEND"; } ;;
  esac
}

use_settings() {
  local name url default address
  for name in DATABASE_URL RABBITMQ_URL; do
    [ -n "$(setting $name)" ] || fail "$name is not set: set both DATABASE_URL and RABBITMQ_URL, or neither for private servers"
  done
  say "using DATABASE_URL of $(origin DATABASE_URL) ($(masked "$(setting DATABASE_URL)")) and RABBITMQ_URL of $(origin RABBITMQ_URL) ($(masked "$(setting RABBITMQ_URL)"))"
  for name in DATABASE_URL RABBITMQ_URL; do
    url=$(setting $name)
    case $name:$url in DATABASE_URL:*) default=5432 ;; *:amqps:*) default=5671 ;; *) default=5672 ;; esac
    address=$(address_of "$url" $default)
    # shellcheck disable=SC2086 # host and port
    [ -z "$address" ] || port_answers $address || fail "nothing listens at ${address/ /:}, where $name of $(origin $name) leads.
Start that server, or correct $name, or have others started:
    SETUP_BACKEND=local ./setup.sh      private ones, under .local/
    SETUP_BACKEND=compose ./setup.sh    those of docker-compose.yml"
  done
  DATABASE_URL=$(setting DATABASE_URL)
  RABBITMQ_URL=$(setting RABBITMQ_URL)
  export DATABASE_URL RABBITMQ_URL
}

origin() { if [ -n "${!1+set}" ]; then echo 'the environment'; else echo .env; fi; }

# Prints our servers' URLs as they are, for copying, and masks passwords of the user's own.
shown_url() { if [ "$backend" = url ]; then masked "$1"; else printf '%s' "$1"; fi; }

# use_servers DATABASE_URL RABBITMQ_URL MANAGEMENT_URL
use_servers() {
  # Empty, so that a DATABASE_DIRECT_URL in .env, which is for another server, is not used.
  export DATABASE_URL=$1 RABBITMQ_URL=$2 DATABASE_DIRECT_URL=''
  MANAGEMENT_URL=$3
}

start_servers() {
  [ "$backend" != url ] || return 0
  exec 9>"$state/start.lock" 8>"$state/use.lock"
  flock -n 9 || { say "waiting for another ./setup.sh that starts or stops the servers" && flock 9; }
  flock -s 8
  in_use=yes
  "use_$backend"
  exec 9>&-
}

use_private_pair() {
  read_ports "$1"
  [ -n "${PG_PASSWORD:-}" ] || fail "these servers were started by an older setup.sh: ./setup.sh down, and start them again"
  # shellcheck disable=SC2153 # read_ports sets them
  use_servers "postgresql://postgres:$PG_PASSWORD@127.0.0.1:$PG_PORT/userdb" "amqp://guest:$AMQP_PASSWORD@127.0.0.1:$AMQP_PORT/" \
    "http://127.0.0.1:$MANAGEMENT_PORT"
}

use_local() {
  local pair
  pair=$(data_root)/dev
  mkdir -p "$pair"
  chmod 755 "$(data_root)"
  chmod 711 "$pair"
  touch "$record/local"
  if pair_is_up "$pair"; then say "PostgreSQL and RabbitMQ are up already"; else start_pair "$pair" dev; fi
  use_private_pair "$pair"
}

docker_answers() { command -v docker >/dev/null && timeout 5 docker info >/dev/null 2>&1; }

# Uses a Compose project for this checkout only: everything in it was started from here.
compose() {
  local project
  project=user-management-api-$(printf %s "$state" | cksum | cut -d ' ' -f 1)
  if docker compose version >/dev/null 2>&1; then docker compose -p "$project" "$@"; else docker-compose -p "$project" "$@"; fi
}

compose_is_healthy() {
  local service container
  for service in postgres rabbitmq; do
    container=$(compose ps -q "$service" 2>/dev/null) && [ -n "$container" ] || return 1
    [ "$(docker inspect -f '{{.State.Health.Status}}' "$container" 2>/dev/null)" = healthy ] || return 1
  done
}

use_compose() {
  if [ -f "$record/compose" ] && compose_is_healthy; then
    say "PostgreSQL and RabbitMQ are up already, in Docker"
  else
    begin "Docker Compose"
    printf '%s\n' "$(setting POSTGRES_PORT 5432)" "$(setting RABBITMQ_PORT 5672)" "$(setting RABBITMQ_MANAGEMENT_PORT 15672)" \
      >"$record/compose"
    if ! compose up -d postgres rabbitmq >&2 || ! patience=120 await compose_is_healthy; then
      [ -n "$interrupted" ] || compose logs --tail 20 >&2 || true
      fail "Docker Compose did not start the servers: see above. If a port is taken, choose others, as in
    POSTGRES_PORT=5433 RABBITMQ_PORT=5673 RABBITMQ_MANAGEMENT_PORT=15673 ./setup.sh"
    fi
    finish "PostgreSQL and RabbitMQ, in Docker"
  fi
  use_compose_ports
}

use_compose_ports() {
  local -a ports
  mapfile -t ports <"$record/compose"
  use_servers "postgresql://postgres:postgres@127.0.0.1:${ports[0]}/userdb" "amqp://guest:guest@127.0.0.1:${ports[1]}/" \
    "http://127.0.0.1:${ports[2]}"
}

# Selects the servers for a command that starts none: those of the settings, or those started from here.
use_started_servers() {
  local wanted
  wanted=$(wanted_backend)
  if [ "$wanted" = url ]; then
    return
  elif [ "$wanted" != compose ] && [ -f "$record/local" ] && [ -f "$(data_root)/dev/ports" ]; then
    use_private_pair "$(data_root)/dev"
  elif [ "$wanted" != local ] && [ -f "$record/compose" ]; then
    use_compose_ports
  fi
}

# Keeps the servers of `up` running after their last user ends.
keep_servers() {
  touch "$record/keep"
  in_use=no
}

# Gives up our share of the servers; the last user stops them.
release_servers() {
  exec 9>"$state/start.lock"
  flock 9
  if flock -n 8 && [ ! -f "$record/keep" ]; then stop_servers; fi
  exec 8>&- 9>&-
}

stop_servers() {
  if [ -f "$record/local" ]; then
    stop_pair "$(data_root)/dev"
    rm -f "$record/local"
  fi
  if [ -f "$record/compose" ]; then compose stop >&2; fi
}

# need_address HOST PORT: fails for an address that the service would refuse, before anything is started or built.
need_address() {
  case $1 in
    localhost) ;;
    *[!0-9a-fA-F.:]*) bad_setting "HOST must be an IP address or localhost, not '$1'" ;;
  esac
  if ! [[ $2 =~ ^[0-9]{1,5}$ ]] || ((10#$2 > 65535)); then bad_setting "PORT must be a number up to 65535, not '$2'"; fi
}

# hold_port HOST PORT URL: locks the port, so that only one service of this checkout uses it.
hold_port() {
  local host=$1
  case $host in 0.0.0.0 | ::) host=127.0.0.1 ;; esac
  exec 7>"$state/port-$2.lock"
  flock -n 7 || fail "this checkout runs at $3 already, or is about to: stop it there with Ctrl-C or by ./setup.sh down,
or choose another port, as in PORT=8001 ./setup.sh"
  [ "$2" = 0 ] || ! port_answers "$host" "$2" || fail "port $2 is taken: stop what listens there, or choose another, as in PORT=8001 ./setup.sh"
}

# service_pid RECORD: prints the id of the service if it runs. The record has its URL, and on the second line its process id.
service_pid() {
  local pid
  pid=$(sed -n 2p "$1")
  if alive "$pid" && [ -O "/proc/$pid" ] && grep -qz 'user-management-api$' "/proc/$pid/cmdline" 2>/dev/null; then echo "$pid"; fi
}

stop_services() {
  local file pid
  for file in "$record"/service-*; do
    [ -f "$file" ] || continue
    pid=$(service_pid "$file")
    if [ -n "$pid" ]; then
      begin "stop the service at $(head -n 1 "$file")"
      kill "$pid" 2>/dev/null || true
      patience=30 await gone "$pid" || kill -s KILL "$pid"
      finish "stopped the service"
    fi
    rm -f "$file"
  done
}

# down [--purge]
down() {
  local pair root
  root=$(data_root)
  stop_services
  exec 9>"$state/start.lock"
  flock 9
  rm -f "$record/keep"
  if [ -f "$record/compose" ]; then
    docker_answers || fail "the Docker engine does not answer, so its containers could not be stopped"
    # shellcheck disable=SC2046 # perhaps none
    compose down $([ $# = 0 ] || echo --volumes) >&2
    rm -f "$record/compose"
  fi
  stop_servers
  for pair in "$root"/test-*/; do
    [ ! -d "$pair" ] || discard_pair "${pair%/}"
  done
  if [ $# -gt 0 ]; then
    rm -rf "${state:?}" "${root:?}"
    [ "$root" = "$state" ] || rmdir "$(dirname "$root")" 2>/dev/null || true
    say "data and packages are deleted"
  fi
  say "nothing runs"
}

row() { printf '%-11s %-5s %-58s %-8s %s\n' "$@" 2>/dev/null || true; }

show_status() {
  local all=0 any=no file pid pair
  row WHAT STATE URL PID 'DATA AND LOG'
  for file in "$record"/service-*; do
    [ -f "$file" ] || continue
    any=yes pid=$(service_pid "$file")
    if [ -n "$pid" ]; then
      row service up "$(head -n 1 "$file")" "$pid" 'its standard output'
    else
      row service down "$(head -n 1 "$file")" - - && all=3
    fi
  done
  if [ -f "$record/local" ]; then
    any=yes pair=$(data_root)/dev
    if pair_is_up "$pair"; then
      use_private_pair "$pair"
      row PostgreSQL up "$DATABASE_URL" "$(postgres_pid "$pair")" "$pair/postgres/{data,log}"
      row RabbitMQ up "$RABBITMQ_URL" "$(rabbitmq_pid "$pair")" "$pair/rabbitmq/{mnesia,log}"
      row management up "$MANAGEMENT_URL" "$(rabbitmq_pid "$pair")" -
    else
      row PostgreSQL down - - "$pair/postgres/{data,log}"
      row RabbitMQ down - - "$pair/rabbitmq/{mnesia,log}" && all=3
    fi
  fi
  if [ -f "$record/compose" ]; then
    any=yes
    if docker_answers && compose_is_healthy; then
      use_compose_ports
      row PostgreSQL up "$DATABASE_URL" docker 'docker logs'
      row RabbitMQ up "$RABBITMQ_URL" docker 'docker logs'
    else
      row Compose down - docker - && all=3
    fi
  fi
  [ $any = yes ] || { say "nothing was started from this checkout" && all=3; }
  return $all
}
