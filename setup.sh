#!/usr/bin/env bash
# The entry point for servers, service and tests. `./setup.sh --help` explains it.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # for `sh setup.sh`
set +o posix
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

  run            run the service in the foreground, and start its servers if needed [default]
  up             start only the servers and leave them running; print their settings, for `eval "$(./setup.sh up)"`
  down [--purge] stop everything started from this checkout; --purge also deletes its data and packages
  status         show what was started from this checkout, its address and state; exit with 0 if all of it is up, else 3
  exec COMMAND…  run a command of the service, such as `outbox status` or `check`, with the settings that `run` uses
  test [--postgres 17|18] [--rabbitmq 4] [-- ARGUMENTS]
                 run all tests on throw-away servers and ignore .env; ARGUMENTS go to `cargo test`
  test-servers [--postgres 17|18] [--rabbitmq 4]
                 start throw-away servers, print their TEST_… settings, and keep them until standard input ends
  chaos [--minutes N] [--seed S] [--replicas R] [--rate W] [--pgbouncer] [--rabbitmq 4] [--no-matrix]
                 inject faults: first each row of the fault matrix as a test, then random faults for N minutes (10)
                 at W writes a second (1000) on R replicas (3), with a table at the end; seed S repeats a schedule;
                 --pgbouncer puts pgbouncer in transaction mode in front of PostgreSQL; AMQP_QUEUE_TYPE sets the queue type
  siege [--seconds N]
                 run all kinds of hostile clients for N seconds (60), and check that honest clients hardly notice
  bench [--quick] [--only TEXT]
                 measure the service next to its limits, in turns (sixteen minutes; --quick: one short round, two minutes;
                 --only: comparisons with TEXT in their name, such as PUT or backlog)
  --help         this text

Servers: if DATABASE_URL and RABBITMQ_URL are set, in the environment or .env, those servers are used and none are started.
Otherwise private ones are started, with their data under .local/, from the system's packages or from apt's, unpacked there.
On a system with neither, Docker Compose starts those of docker-compose.yml. SETUP_BACKEND=url, local or compose forces one.
The service's own settings are in .env.example. If TEST_DATABASE_URL, TEST_RABBITMQ_URL and TEST_RABBITMQ_MANAGEMENT_URL are
all set, the tests use those servers and start none.
HELP
}

choose_rabbitmq() { if [ "$1" = 4 ]; then rabbitmq='rabbitmq-4'; else bad_usage "--rabbitmq takes 4, not '$1'"; fi; }

bad_usage() {
  printf 'setup.sh: %s (./setup.sh --help lists all)\n' "$1" >&2
  exit 2
}

binary=${CARGO_TARGET_DIR:-target}/release/user-management-api

build() {
  begin "build the service (minutes, the first time)"
  SQLX_OFFLINE=true run_child cargo build --release --locked --bin user-management-api >&2 || fail "cargo build failed: see above"
  finish "built the service"
}

run() {
  local status=0 host port url
  host=$(setting HOST 127.0.0.1)
  port=$(setting PORT 8000)
  need_address "$host" "$port"
  case $host in *:*) url="http://[$host]:$port" ;; *) url="http://$host:$port" ;; esac
  hold_port "$host" "$port" "$url"
  need_cargo
  choose_servers
  [ "$backend" != local ] || need_servers
  need_compiler
  build
  # Names every bad setting. The URLs of private servers are not known yet, so placeholders stand in for them.
  DATABASE_URL=${DATABASE_URL:-postgresql://localhost} RABBITMQ_URL=${RABBITMQ_URL:-amqp://localhost} \
    "$binary" check --settings >/dev/null || exit
  start_servers
  if [ "$backend" = url ]; then
    "$binary" check >&2 || fail "these servers cannot be used as they are: see above how to fix it"
  fi
  say "API       $url/users"
  say "Docs      $url/docs"
  say "Database  $(shown_url "$DATABASE_URL")"
  say "Broker    $(shown_url "$RABBITMQ_URL")${MANAGEMENT_URL:+   (management: $MANAGEMENT_URL)}"
  say "Ctrl-C stops it"
  service_record=$record/service-$port
  printf '%s\n' "$url" >"$service_record"
  run_child "$binary" || status=$?
  rm -f "$service_record"
  exit "$status"
}

up() {
  choose_servers
  if [ "$backend" = url ]; then
    say "nothing to start: these servers are your own"
    return
  fi
  [ "$backend" != local ] || need_servers
  start_servers
  keep_servers
  printf 'export DATABASE_URL=%q\nexport RABBITMQ_URL=%q\n' "$DATABASE_URL" "$RABBITMQ_URL"
  [ -z "$MANAGEMENT_URL" ] || say "RabbitMQ management: $MANAGEMENT_URL"
}

# exec_command COMMAND…
exec_command() {
  [ $# -gt 0 ] || bad_usage "exec takes a command of the service, such as: ./setup.sh exec outbox status"
  [ -x "$binary" ] || fail "the service is not built yet: ./setup.sh builds it"
  use_started_servers
  exec "$binary" "$@"
}

test_settings() {
  printf 'TEST_DATABASE_URL=postgresql://postgres:%s@127.0.0.1:%s/postgres\n' "$PG_PASSWORD" "$PG_PORT"
  printf 'TEST_RABBITMQ_URL=amqp://guest:%s@127.0.0.1:%s/\n' "$AMQP_PASSWORD" "$AMQP_PORT"
  printf 'TEST_RABBITMQ_MANAGEMENT_URL=http://guest:%s@127.0.0.1:%s/\n' "$AMQP_PASSWORD" "$MANAGEMENT_PORT"
  printf 'TEST_SERVERS=%s\n' "$throw_away"
}

# start_test_servers test|chaos|bench [POSTGRES_VERSION]: starts throw-away servers and exports their TEST_… settings.
start_test_servers() {
  local line
  start_throw_away_pair "$@"
  while read -r line; do export "${line?}"; done < <(test_settings)
}

# run_tests POSTGRES_VERSION ARGUMENTS…
run_tests() {
  local version=$1 status=0
  shift
  need_cargo
  need_compiler
  if [ -n "${TEST_DATABASE_URL:-}" ] && [ -n "${TEST_RABBITMQ_URL:-}" ] && [ -n "${TEST_RABBITMQ_MANAGEMENT_URL:-}" ]; then
    say "using the servers of TEST_DATABASE_URL, TEST_RABBITMQ_URL and TEST_RABBITMQ_MANAGEMENT_URL"
  else
    start_test_servers test "$version"
  fi
  begin "tests (minutes to build, the first time)"
  SQLX_OFFLINE=true run_child cargo test --locked "$@" || status=$?
  if [ -n "$interrupted" ]; then finish "stopped"; elif [ $status = 0 ]; then finish "tests passed"; else finish "tests failed: see above"; fi
  exit "${interrupted:-$status}"
}

# test_servers [POSTGRES_VERSION]
test_servers() {
  start_throw_away_pair test "$1"
  test_settings
  echo ready
  # In the background, so that bash handles a signal immediately.
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
      --rabbitmq)
        choose_rabbitmq "${2:-}"
        shift
        ;;
      --no-matrix) matrix=no ;;
      *) bad_usage "chaos does not take '$1'" ;;
    esac
    shift
  done
  ((replicas >= 1 && rate >= 1)) || bad_usage "chaos needs at least one replica and one write a second"
  need_cargo
  need_compiler
  need_faketime
  [ $pgbouncer = no ] || need_tool pgbouncer
  start_test_servers chaos
  [ $pgbouncer = no ] || start_pgbouncer "$throw_away"
  export SQLX_OFFLINE=true CHAOS_MINUTES=$minutes CHAOS_SEED=$seed CHAOS_REPLICAS=$replicas CHAOS_RATE=$rate
  begin "build (minutes, the first time)"
  run_child cargo test --profile chaos --locked --test api --test chaos --no-run >&2 || fail "cargo build failed: see above"
  finish built
  if [ $matrix = yes ]; then
    say "fault matrix: one test for each fault"
    run_child cargo test --profile chaos --locked --test api -- fault database_states replicas poison events:: lifecycle:: dead_letters:: fairness:: || status=1
    [ -n "$interrupted" ] || run_child cargo test --profile chaos --locked --test chaos -- --nocapture --test-threads=1 matrix || status=1
  fi
  if [ -z "$interrupted" ] && ((minutes > 0)); then
    say "random faults for $minutes minutes, seed $seed"
    run_child cargo test --profile chaos --locked --test chaos -- --nocapture --test-threads=1 storm || status=1
  fi
  if [ -n "$interrupted" ]; then say "chaos: stopped"; elif [ $status = 0 ]; then say "chaos: passed"; else say "chaos: FAILED, see above; seed $seed"; fi
  exit "${interrupted:-$status}"
}

# siege [--seconds N]
siege() {
  local seconds=60
  case ${1:-} in
    '') ;;
    --seconds) [[ ${2:-} =~ ^[1-9][0-9]{0,3}$ ]] || bad_usage "--seconds takes a whole number, not '${2:-}'" && seconds=$2 ;;
    *) bad_usage "siege takes --seconds N, not '$1'" ;;
  esac
  need_cargo
  need_compiler
  ulimit -n 8192 2>/dev/null || fail "the hostile clients need 8192 open files: raise the hard limit (ulimit -Hn)"
  start_test_servers chaos
  begin "build (minutes, the first time)"
  SQLX_OFFLINE=true run_child cargo test --profile chaos --locked --test chaos --no-run >&2 || fail "cargo build failed: see above"
  finish built
  SQLX_OFFLINE=true SIEGE_SECONDS=$seconds run_child cargo test --profile chaos --locked --test chaos -- --nocapture --exact \
    chaos::siege::siege || fail "siege: FAILED, see above"
  say "siege: passed"
}

# bench [--quick] [--only TEXT]
bench() {
  need_cargo
  need_compiler
  need_tool wrk
  start_test_servers bench
  PATH=$(postgres_bin):$PATH
  begin "build (minutes, the first time)"
  SQLX_OFFLINE=true run_child cargo bench --locked --bench service --no-run >&2 || fail "cargo build failed: see above"
  finish built
  SQLX_OFFLINE=true run_child cargo bench --quiet --locked --bench service -- --output "$state/bench" "$@" ||
    fail "the bench failed: see above"
}

main() {
  local command=${1-run} version=''
  [ $# = 0 ] || shift
  case " $* " in " --help "* | " -h "*) [ "$command" = exec ] || command=--help ;; esac
  case $command in
    -h | --help | help) usage && return ;;
    test | test-servers)
      while true; do
        case ${1:-} in
          --postgres) case ${2:-} in 17 | 18) version=$2 ;; *) bad_usage "--postgres takes 17 or 18, not '${2:-}'" ;; esac ;;
          --rabbitmq) choose_rabbitmq "${2:-}" ;;
          *) break ;;
        esac
        shift 2
      done
      if [ "$command" = test ] && [ "${1:-}" = -- ]; then shift; elif [ $# -gt 0 ]; then bad_usage "$command does not take '$1'"; fi
      ;;
    down) [ $# = 0 ] || [ "$*" = --purge ] || bad_usage "down takes --purge, not '$*'" ;;
    run | up | status) [ $# = 0 ] || bad_usage "$command takes no arguments" ;;
    bench) case ${1:-} in '' | --quick | --only) ;; *) bad_usage "bench takes --quick and --only TEXT, not '$1'" ;; esac ;;
    chaos | exec | siege) ;;
    *) bad_usage "there is no command '$command'" ;;
  esac
  mkdir -p "$record"
  case $command in
    test) run_tests "$version" "$@" ;;
    test-servers) test_servers "$version" ;;
    status) show_status ;;
    exec) exec_command "$@" ;;
    *) "$command" "$@" ;;
  esac
}

main "$@"
