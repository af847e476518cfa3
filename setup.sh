#!/usr/bin/env bash
# The one entrance: servers, service, tests. `./setup.sh --help` explains.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/common.sh
. scripts/common.sh
# shellcheck source=scripts/packages.sh
. scripts/packages.sh
# shellcheck source=scripts/servers.sh
. scripts/servers.sh
# shellcheck source=scripts/backend.sh
. scripts/backend.sh

usage() {
  cat <<'HELP'
Usage: ./setup.sh [COMMAND]

  run            bring up what is missing and run the service in the foreground [default]
  up             bring up PostgreSQL and RabbitMQ, and leave them running
  down [--purge] stop all that setup.sh has started here; --purge also deletes the data
  status         show what runs, where, and where its data and logs are
  test [--postgres 17|18] [-- ARGUMENTS]
                 run every test on a throw-away PostgreSQL and RabbitMQ; ARGUMENTS go to `cargo test`
  test-servers [--postgres 17|18]
                 keep such a pair until standard input ends, and print its TEST_… settings
  --help         this text

PostgreSQL and RabbitMQ are, in this order: those of DATABASE_URL and RABBITMQ_URL, from the environment or .env, if
both answer; Docker Compose, if an engine answers; private instances of the system's packages under .local/, on ports of
their own, installed by apt where root or sudo allows it. SETUP_BACKEND=url|compose|local takes one of the three and no
other.
HELP
}

bad_usage() {
  printf 'setup.sh: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

build() {
  need_cargo
  begin "service"
  SQLX_OFFLINE=true run_child cargo build --locked "$@" 1>&2 || fail "cargo build failed: see above"
  finish "service built"
}

run() {
  local host port
  host=$(setting HOST 127.0.0.1) port=$(setting PORT 8000)
  if [ "$port" != 0 ] && port_answers "$host" "$port"; then
    fail "port $port is taken: stop what listens there, or choose another with PORT=8001 ./setup.sh"
  fi
  build --release
  bring_up
  say "API       http://$host:$port/users"
  say "Docs      http://$host:$port/docs"
  say "Database  $DATABASE_URL"
  say "Broker    $RABBITMQ_URL${MANAGEMENT_URL:+   management: $MANAGEMENT_URL}"
  say "Ctrl-C stops it"
  local status=0
  service_pid_file=$state/service.pid
  run_child "${CARGO_TARGET_DIR:-target}/release/user-management-api" || status=$?
  rm -f "$service_pid_file"
  exit "$status"
}

up() {
  bring_up
  started_dev=no
  printf 'export DATABASE_URL=%q RABBITMQ_URL=%q\n' "$DATABASE_URL" "$RABBITMQ_URL"
  [ -z "$MANAGEMENT_URL" ] || printf '# management: %s\n' "$MANAGEMENT_URL"
}

down() {
  local purge=no pair
  case ${1:-} in '') ;; --purge) purge=yes ;; *) bad_usage "down takes --purge, not $1" ;; esac
  local root
  root=$(data_root) dev=$root/dev
  stop_service
  for pair in "$dev" "$root"/test-*/; do
    [ ! -d "$pair" ] || stop_pair "${pair%/}"
  done
  compose_down "$purge"
  rm -rf "$root"/test-*/
  if [ $purge = yes ]; then
    rm -rf "${dev:?}"
    say "the data is deleted"
  fi
  say "nothing runs"
}

test_settings() {
  printf 'TEST_DATABASE_URL=postgresql://postgres:postgres@127.0.0.1:%s/postgres\n' "$PG_PORT"
  printf 'TEST_RABBITMQ_URL=amqp://guest:guest@127.0.0.1:%s/\n' "$AMQP_PORT"
  printf 'TEST_RABBITMQ_MANAGEMENT_URL=http://guest:guest@127.0.0.1:%s/\n' "$MANAGEMENT_PORT"
}

# Starts a throw-away pair; the exit trap stops it and deletes it, however this script ends.
throw_away_pair() {
  local version=$1
  throw_away=$(mktemp -d "$(data_root)/test-XXXXXX")
  chmod 755 "$throw_away"
  start_pair "$throw_away" test "$version"
}

need_version() {
  case $1 in 17 | 18) ;; *) bad_usage "--postgres takes 17 or 18, not '$1'" ;; esac
}

run_tests() {
  local version=''
  while [ $# -gt 0 ]; do
    case $1 in
      --postgres)
        version=${2:-}
        need_version "$version"
        shift 2
        ;;
      --)
        shift
        break
        ;;
      *) bad_usage "test does not take $1" ;;
    esac
  done
  need_cargo
  if [ -n "${TEST_DATABASE_URL:-}" ] && [ -n "${TEST_RABBITMQ_URL:-}" ] && [ -n "${TEST_RABBITMQ_MANAGEMENT_URL:-}" ]; then
    say "servers of the environment: TEST_DATABASE_URL, TEST_RABBITMQ_URL, TEST_RABBITMQ_MANAGEMENT_URL"
  else
    throw_away_pair "$version"
    local line
    while read -r line; do export "${line?}"; done < <(test_settings)
  fi
  begin "tests"
  SQLX_OFFLINE=true run_child cargo test --locked "$@" || fail "tests failed: see above"
  finish "tests passed"
}

test_servers() {
  local version=''
  case ${1:-} in
    '') ;;
    --postgres)
      version=${2:-}
      need_version "$version"
      ;;
    *) bad_usage "test-servers does not take $1" ;;
  esac
  throw_away_pair "$version"
  test_settings
  echo ready
  # In the background, so that a signal is handled at once.
  cat <&0 >/dev/null &
  wait $! || true
}

main() {
  local command=${1:-run}
  [ $# -eq 0 ] || shift
  case $command in
    run) [ $# -eq 0 ] || bad_usage "run takes no arguments" ;;
    -h | --help | help) usage && exit ;;
  esac
  mkdir -p "$state"
  case $command in
    run) run ;;
    up) up ;;
    down) down "$@" ;;
    status) show_status ;;
    test) run_tests "$@" ;;
    test-servers) test_servers "$@" ;;
    *) bad_usage "there is no command '$command'" ;;
  esac
}

main "$@"
