#!/usr/bin/env bash
# The one entrance: servers, service, tests. `./setup.sh --help` explains.
set -euo pipefail
if ((BASH_VERSINFO[0] < 5)) || [ ! -d /proc/self ]; then
  echo 'setup.sh: needs Linux and bash 5 or later' >&2
  exit 1
fi
umask 022 # PostgreSQL may run as another user
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
  status         show what runs, where, and where its data and logs are; exits with 3 unless all is up
  test [--postgres 17|18] [-- ARGUMENTS]
                 run every test on a throw-away PostgreSQL and RabbitMQ; ARGUMENTS go to `cargo test`
  test-servers [--postgres 17|18]
                 keep such a pair until standard input ends, and print its TEST_… settings
  chaos [--minutes N] [--seed S] [--replicas R] [--rate W] [--pgbouncer] [--no-matrix]
                 lose every part in every way: first each fault of the matrix as a test, then random faults for N
                 minutes (10) under W writes a second (1000) on R replicas (3), with a table at the end; S repeats a
                 schedule; --pgbouncer puts one, in transaction mode, before PostgreSQL; AMQP_QUEUE_TYPE is obeyed
  bench [--quick]
                 measure the service beside an empty axum handler, a plain axum and sqlx service, and pgbench with the same
                 statements, in turns (about eight minutes; --quick: one short round, for work in progress)
  --help         this text

The service gets the first of these that is to be had; SETUP_BACKEND takes one and no other:
  url            the servers of DATABASE_URL and RABBITMQ_URL, from the environment or .env, if both answer
  compose        docker-compose.yml, if a Docker engine answers
  local          private instances of the system's packages, on ports of their own, their data under .local/; packages
                 that are missing are installed with apt where root or sudo allows it
The service's own settings are in .env.example. The tests use TEST_DATABASE_URL, TEST_RABBITMQ_URL and
TEST_RABBITMQ_MANAGEMENT_URL, if all are set, in place of servers of their own.
HELP
}

bad_usage() {
  printf 'setup.sh: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

service_url() {
  local host
  host=$(setting HOST 127.0.0.1)
  case $host in *:*) host="[$host]" ;; esac
  printf 'http://%s:%s' "$host" "$(setting PORT 8000)"
}

need_free_port() {
  local host port
  host=$(setting HOST 127.0.0.1) port=$(setting PORT 8000)
  if ! [[ $port =~ ^[0-9]{1,5}$ ]] || ((10#$port > 65535)); then
    fail "PORT must be a number up to 65535, not '$port'"
  fi
  if port_answers "$host" "$port"; then
    fail "port $port is taken: stop what listens there, or choose another, as in PORT=8001 ./setup.sh"
  fi
}

build() {
  local -a missing
  read -ra missing <<<"$(compiler_packages)"
  install_packages "${missing[@]}"
  begin "build the service (minutes, the first time)"
  SQLX_OFFLINE=true run_child cargo build --release --locked >&2 || fail "cargo build failed: see above"
  finish "built the service"
}

run() {
  local status=0
  need_free_port
  need_cargo
  bring_up
  build
  say "API       $(service_url)/users"
  say "Docs      $(service_url)/docs"
  say "Database  $DATABASE_URL"
  say "Broker    $RABBITMQ_URL${MANAGEMENT_URL:+   (management: $MANAGEMENT_URL)}"
  say "Ctrl-C stops it"
  service_pid_file=$state/service.pid
  run_child "${CARGO_TARGET_DIR:-target}/release/user-management-api" || status=$?
  rm -f "$service_pid_file"
  exit "$status"
}

up() {
  bring_up
  started_dev=no started_compose=no
  printf 'export DATABASE_URL=%q\nexport RABBITMQ_URL=%q\n' "$DATABASE_URL" "$RABBITMQ_URL"
  [ -z "$MANAGEMENT_URL" ] || say "RabbitMQ management: $MANAGEMENT_URL"
}

down() {
  local purge=no root pair
  [ $# = 0 ] || purge=yes
  root=$(data_root)
  stop_service
  stop_pair "$root/dev"
  for pair in "$root"/test-*/; do
    [ ! -d "$pair" ] || discard_pair "${pair%/}"
  done
  compose_down "$purge"
  if [ $purge = yes ]; then
    rm -rf "${root:?}/dev"
    say "the data is deleted"
  fi
  say "nothing runs"
}

test_settings() {
  printf 'TEST_DATABASE_URL=postgresql://postgres:postgres@127.0.0.1:%s/postgres\n' "$PG_PORT"
  printf 'TEST_RABBITMQ_URL=amqp://guest:guest@127.0.0.1:%s/\n' "$AMQP_PORT"
  printf 'TEST_RABBITMQ_MANAGEMENT_URL=http://guest:guest@127.0.0.1:%s/\n' "$MANAGEMENT_PORT"
}

# For the tests and benches that cargo runs here.
export_test_settings() {
  local line
  while read -r line; do export "${line?}"; done < <(test_settings)
}

# run_tests POSTGRES_VERSION ARGUMENTS…
run_tests() {
  local version=$1 status=0
  shift
  need_cargo
  if [ -n "${TEST_DATABASE_URL:-}" ] && [ -n "${TEST_RABBITMQ_URL:-}" ] && [ -n "${TEST_RABBITMQ_MANAGEMENT_URL:-}" ]; then
    say "servers of the environment: TEST_DATABASE_URL, TEST_RABBITMQ_URL, TEST_RABBITMQ_MANAGEMENT_URL"
  else
    start_throw_away_pair test "$version"
    export_test_settings
  fi
  begin "tests (minutes to build, the first time)"
  SQLX_OFFLINE=true run_child cargo test --locked "$@" || status=$?
  if [ $status = 0 ]; then finish "tests passed"; else finish "tests failed: see above"; fi
  exit "${interrupted:-$status}"
}

test_servers() {
  start_throw_away_pair test "$1"
  test_settings
  echo ready
  # In the background, for a signal to be handled at once.
  cat <&0 >/dev/null 2>&1 &
  reader=$!
  wait "$reader" || true
}

# chaos [OPTION…]
chaos() {
  local minutes=10 seed=$RANDOM replicas=3 rate=1000 pgbouncer=no matrix=yes status=0
  while [ $# -gt 0 ]; do
    case $1 in
      --minutes | --seed | --replicas | --rate)
        [[ ${2:-} =~ ^[0-9]{1,9}$ ]] || bad_usage "$1 takes a whole number, not '${2:-}'"
        printf -v "${1#--}" %d "$((10#$2))"
        shift
        ;;
      --pgbouncer) pgbouncer=yes ;;
      --no-matrix) matrix=no ;;
      *) bad_usage "chaos does not take '$1'" ;;
    esac
    shift
  done
  ((replicas >= 1 && rate >= 1)) || bad_usage "chaos needs a replica and a write"
  need_cargo
  need_chaos_packages $pgbouncer
  start_throw_away_pair chaos
  export_test_settings
  export TEST_SERVERS=$throw_away
  if [ $pgbouncer = yes ]; then
    start_pgbouncer "$throw_away"
    export TEST_POOLER_URL=postgresql://postgres:postgres@127.0.0.1:$POOLER_PORT/postgres
  fi
  export SQLX_OFFLINE=true CHAOS_MINUTES=$minutes CHAOS_SEED=$seed CHAOS_REPLICAS=$replicas CHAOS_RATE=$rate
  begin "build (minutes, the first time)"
  run_child cargo test --profile chaos --locked --test api --test chaos --no-run >&2 || fail "cargo build failed: see above"
  finish built
  if [ $matrix = yes ]; then
    say "the matrix: each fault by itself"
    run_child cargo test --profile chaos --locked --test api -- fault replicas poison || status=1
    [ -n "$interrupted" ] || run_child cargo test --profile chaos --locked --test chaos -- --nocapture --test-threads=1 matrix || status=1
  fi
  if [ -z "$interrupted" ] && ((minutes > 0)); then
    say "random faults for $minutes minutes, seed $seed"
    run_child cargo test --profile chaos --locked --test chaos -- --nocapture --test-threads=1 storm || status=1
  fi
  if [ $status = 0 ]; then say "chaos: passed"; else say "chaos: FAILED, see above; seed $seed"; fi
  exit "${interrupted:-$status}"
}

# bench [--quick]
bench() {
  need_cargo
  need_bench_packages
  start_throw_away_pair bench
  export_test_settings
  PATH=$(postgres_bin):$PATH
  begin "build (minutes, the first time)"
  SQLX_OFFLINE=true run_child cargo bench --locked --bench service --no-run >&2 || fail "cargo build failed: see above"
  finish built
  SQLX_OFFLINE=true run_child cargo bench --quiet --locked --bench service -- --output "$state/bench" "$@" ||
    fail "the bench failed: see above"
}

# take_version "$@": the value of --postgres, into $version.
take_version() {
  case ${2:-} in
    17 | 18) version=$2 ;;
    *) bad_usage "--postgres takes 17 or 18, not '${2:-}'" ;;
  esac
}

main() {
  local command=${1:-run} version=''
  [ $# = 0 ] || shift
  case $command in
    -h | --help | help) usage && return ;;
    test | test-servers)
      if [ "${1:-}" = --postgres ]; then take_version "$@" && shift 2; fi
      if [ "$command" = test ] && [ "${1:-}" = -- ]; then shift; elif [ $# -gt 0 ]; then bad_usage "$command does not take '$1'"; fi
      ;;
    down) [ $# = 0 ] || [ "$*" = --purge ] || bad_usage "down takes --purge, not '$*'" ;;
    bench) [ $# = 0 ] || [ "$*" = --quick ] || bad_usage "bench takes --quick, not '$*'" ;;
    chaos) ;;
    run | up | status) [ $# = 0 ] || bad_usage "$command takes no arguments" ;;
    *) bad_usage "there is no command '$command'" ;;
  esac
  mkdir -p "$state"
  case $command in
    test) run_tests "$version" "$@" ;;
    test-servers) test_servers "$version" ;;
    status) show_status ;;
    *) "$command" "$@" ;;
  esac
}

main "$@"
