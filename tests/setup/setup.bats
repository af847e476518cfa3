#!/usr/bin/env bats
# ./setup.sh as newcomers use it, each time in a checkout of its own. The build is left out: each checkout is lent the service
# that `cargo build` has made here.

# shellcheck disable=SC2030,SC2031 # each test is a subshell, and means to be
bats_require_minimum_version 1.5.0

setup_file() {
  chmod 755 "$BATS_RUN_TMPDIR" "$BATS_RUN_TMPDIR"/*/ # as root, PostgreSQL runs as another user
  SOURCE=$(readlink -f "$BATS_TEST_DIRNAME/../..")
  cd "$SOURCE" || return
  # Packages that are missing are fetched once.
  ./setup.sh test-servers </dev/null
  PACKAGES=$(readlink -f .local/data)/packages
  [ -e .local/data ] || PACKAGES=$SOURCE/.local/packages
  export SOURCE PACKAGES LENT=$BATS_FILE_TMPDIR/target REAL_TARGET=$SOURCE/target CARGO
  mkdir -p "$LENT/release" "$BATS_FILE_TMPDIR/bin"
  cp target/debug/user-management-api "$LENT/release/"
  CARGO=$(command -v cargo)
  cat >"$BATS_FILE_TMPDIR/bin/cargo" <<'SHIM'
#!/bin/sh
case $1 in
  build) exit 0 ;;
  bench) shift && exec "$CARGO" bench --profile dev "$@" ;;
  *) exec "$CARGO" "$@" ;;
esac
SHIM
  chmod 755 "$BATS_FILE_TMPDIR/bin/cargo"
}

setup() {
  CHECKOUT=$BATS_TEST_TMPDIR/${CHECKOUT_NAME:-checkout}
  new_checkout "$CHECKOUT"
  cd "$CHECKOUT" || return
  export CARGO_TARGET_DIR=$LENT PATH=$BATS_FILE_TMPDIR/bin:$PATH
  unset DATABASE_URL RABBITMQ_URL SETUP_BACKEND HOST LOG_LEVEL LOG_FORMAT
  PORT=$(free_port) # the default may be somebody's
  export PORT
}

teardown() {
  cd /
  for folder in "$BATS_TEST_TMPDIR"/*/; do
    [ ! -x "$folder/setup.sh" ] || "$folder/setup.sh" down --purge
  done
}

# As it will be committed, with the packages that are there already.
new_checkout() {
  mkdir -p "$1/.local"
  [ ! -e "$PACKAGES" ] || ln -s "$PACKAGES" "$1/.local/packages"
  (cd "$SOURCE" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$1" 2>/dev/null) || true
  chmod 755 "$BATS_TEST_TMPDIR"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# until_it FILE TEXT: waits for a text in the output of something in the background.
until_it() {
  local tries
  for ((tries = 0; tries < 900; tries++)); do
    ! grep -q -- "$2" "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  echo "no '$2' in:" && cat "$1"
  return 1
}

# serve PORT [NAME=VALUE…]: ./setup.sh in the background, as from a terminal of its own, until it serves. Sets $served.
serve() {
  local port=$1
  shift
  env --default-signal=INT PORT="$port" "$@" setsid ./setup.sh >"serve-$port.log" 2>&1 3>&- &
  served=$!
  until_it "serve-$port.log" '"Listening"'
}

# stop SIGNAL: to all of its process group, as a terminal does; and waits for its end.
stop() {
  kill -s "$1" -- "-$served"
  wait "$served" || true
}

# Within 30 s: a service that listens may still be applying the migrations.
answers() {
  curl -sf --max-time 5 --retry 30 --retry-delay 1 --retry-all-errors "http://127.0.0.1:$1/health/ready" >/dev/null
}
processes_here() { grep -lzF "SETUP_PAIR=$(readlink -f "$CHECKOUT")" /proc/[0-9]*/environ 2>/dev/null || true; }

@test "help is there for the asking, and a wrong word is answered by one line" {
  for ask in --help -h help 'test --help' 'down -h'; do
    # shellcheck disable=SC2086 # words
    run -0 ./setup.sh $ask
    [[ $output == Usage:* ]]
  done
  run -0 sh setup.sh --help
  run -2 ./setup.sh ''
  run -2 ./setup.sh dance
  [[ $output == *"no command 'dance'"* ]]
  run -2 ./setup.sh down --everything
}

@test "bad settings are said before anything is started or built" {
  for bad in HOST=example.com PORT=80000 PORT=x; do
    run -2 env CARGO_TARGET_DIR="$BATS_TEST_TMPDIR/none" "$bad" ./setup.sh
    [[ $output == *"${bad%%=*}"* && $output != *build* && $output != *PostgreSQL* ]]
  done
  echo 'LOG_LEVEL=LOUD' >.env
  run -2 ./setup.sh
  [[ $output == *LOG_LEVEL:* && $output != *"RabbitMQ on"* ]]
}

@test "without settings it serves on private servers, and down leaves nothing" {
  port=$(free_port)
  serve "$port"
  grep -q 'using private servers under .local/' "serve-$port.log"
  answers "$port"
  run -0 ./setup.sh status
  [[ $output == *"service     up    http://127.0.0.1:$port"* && $output == *"RabbitMQ    up"* ]]
  run -0 ./setup.sh exec outbox status
  [[ $output == *pending* ]]
  run -0 --separate-stderr ./setup.sh exec api-key create front-end --scope users:write
  [[ $output =~ ^umapi_[0-9A-Za-z]{36}$ ]]
  curl -sf "http://127.0.0.1:$port/users" -H "Authorization: Bearer $output"
  run -0 ./setup.sh down --purge
  wait "$served" || true
  run ! curl -s "http://127.0.0.1:$port/health/live"
  [ -z "$(processes_here)" ]
  [ ! -e .local ]
  run -3 ./setup.sh status
  [[ $output == *"nothing was started"* ]]
}

@test "what the private servers hold is their owner's alone, with passwords that nobody else knows" {
  run -0 --separate-stderr ./setup.sh up
  eval "$output"
  run ! psql "${DATABASE_URL/postgres:*@/postgres:postgres@}" -c 'SELECT 1'
  psql "$DATABASE_URL" -c 'SELECT 1'
  pair=$(readlink -f .local/dev)
  [ ! -e .local/data ] || pair=$(readlink -f .local/data)/dev
  [ "$(stat -c %a "$pair/secrets") $(stat -c %a "$pair/ports") $(stat -c %a "$pair/rabbitmq")" = '600 600 700' ]
  # Nothing of it can be read by others, and nothing that we write lies in a folder of PostgreSQL's user.
  [ -z "$(find "$pair/rabbitmq" "$pair/postgres/data" -maxdepth 0 -perm /077)" ]
  [ "$(stat -c %u "$pair/postgres")" = "$(id -u)" ]
  [ ! -e "$pair/postgres/password" ]
  run -0 ./setup.sh down
}

@test "Ctrl-C stops the service and its servers, and says so" {
  port=$(free_port)
  serve "$port"
  stop INT
  grep -q 'stopped PostgreSQL and RabbitMQ' "serve-$port.log"
  [ -z "$(processes_here)" ]
  run ! grep -q 'failed' "serve-$port.log"
  run -3 ./setup.sh status
}

@test "Ctrl-C while the servers start leaves nothing" {
  env --default-signal=INT PORT="$(free_port)" setsid ./setup.sh >early.log 2>&1 3>&- &
  served=$!
  until_it early.log 'PostgreSQL and RabbitMQ …'
  stop INT
  grep -q 'stopped' early.log
  [ -z "$(processes_here)" ]
}

@test "a second start in the same checkout is refused at once, on another port it shares the servers" {
  first=$(free_port) second=$(free_port)
  serve "$first"
  one=$served
  run -1 env PORT="$first" ./setup.sh
  [[ $output == *"this checkout runs at http://127.0.0.1:$first already"* && $output != *build* ]]
  answers "$first"
  serve "$second"
  grep -q 'are up already' "serve-$second.log"
  kill -s TERM "$one"
  wait "$one" || true
  answers "$second"
  run -0 ./setup.sh status
  [[ $output != *":$first"* && $output == *"RabbitMQ    up"* ]]
  stop TERM
  [ -z "$(processes_here)" ]
}

@test "the servers of up stay when a service goes, until down" {
  run -0 --separate-stderr ./setup.sh up
  [[ $output == "export DATABASE_URL=postgresql://"*"export RABBITMQ_URL=amqp://"* ]]
  run -0 ./setup.sh status
  [[ $output != *service* && $output == *"PostgreSQL  up"* ]]
  serve "$(free_port)"
  stop TERM
  run -0 ./setup.sh status
  run -0 ./setup.sh down
  [ -z "$(processes_here)" ]
}

@test "two checkouts at once have servers of their own" {
  other=$BATS_TEST_TMPDIR/other
  new_checkout "$other"
  port=$(free_port)
  serve "$port"
  cd "$other"
  serve "$(free_port)"
  run -0 ./setup.sh down
  cd "$CHECKOUT"
  answers "$port"
}

@test "a folder with a space in its name" {
  spaced="$BATS_TEST_TMPDIR/a folder"
  new_checkout "$spaced"
  cd "$spaced"
  serve "$(free_port)"
  where=$(readlink -f .local/data)
  [ -d "$where/dev" ]
  run -0 ./setup.sh down --purge
  [ ! -e "$where" ]
}

@test "servers of one's own are used, checked and left alone, and no password is shown" {
  mine=$BATS_TEST_TMPDIR/mine
  new_checkout "$mine"
  eval "$(cd "$mine" && ./setup.sh up)"
  mine_port=${DATABASE_URL##*:} mine_port=${mine_port%/*}
  printf 'DATABASE_URL=%s\nRABBITMQ_URL=%s\n' "${DATABASE_URL/postgresql:/postgresql+asyncpg:}" "$RABBITMQ_URL" >.env
  password=${DATABASE_URL#*postgres:} password=${password%@*}
  unset DATABASE_URL RABBITMQ_URL
  port=$(free_port)
  serve "$port"
  answers "$port"
  grep -q 'using DATABASE_URL of .env (postgresql+asyncpg://postgres:\*\*\*@' "serve-$port.log"
  run ! grep -qF "$password" "serve-$port.log"
  run -0 ./setup.sh status
  [[ $output != *PostgreSQL* ]]
  # Commands go where the service goes, whatever was started from here before.
  stop TERM
  SETUP_BACKEND=local ./setup.sh up
  run -0 ./setup.sh exec check
  [[ $output == *"${mine_port}"* ]]
  run -0 ./setup.sh down --purge
  (cd "$mine" && ./setup.sh status)
}

@test "servers that refuse the login are said so, and nothing serves" {
  mine=$BATS_TEST_TMPDIR/mine
  new_checkout "$mine"
  eval "$(cd "$mine" && ./setup.sh up)"
  export DATABASE_URL=${DATABASE_URL/postgres:*@/postgres:hunter22@}
  run -1 env PORT="$(free_port)" ./setup.sh
  [[ $output == *"password authentication failed"*"correct user and password in DATABASE_URL"* ]]
  [[ $output != *hunter22* && $output != *Listening* ]]
}

@test "an address where nothing listens, or one of the two alone, is said so before the build" {
  cat >.env <<<$'DATABASE_URL=postgresql+asyncpg://postgres:hunter22@localhost:1/userdb\nRABBITMQ_URL=amqp://guest:guest@localhost:1/'
  run -1 env CARGO_TARGET_DIR="$BATS_TEST_TMPDIR/none" ./setup.sh
  [[ $output == *"nothing listens at localhost:1, where DATABASE_URL of .env leads"*"SETUP_BACKEND=local"* ]]
  [[ $output != *hunter22* && $output != *build* ]]
  echo 'RABBITMQ_URL=amqp://guest:guest@localhost:1/' >.env
  run -1 ./setup.sh
  [[ $output == *"DATABASE_URL is not set"* ]]
  run -1 env SETUP_BACKEND=url RABBITMQ_URL= ./setup.sh
}

@test "a .env that other tools share is read as the service reads it" {
  {
    printf '\xef\xbb\xbfPORT=1\r\n'
    cat <<'ENV'
KEY="-----BEGIN
MII secret
export HOST = pa$word # c
LOG_LEVEL="a \"b\" \$HOME ${PORT}"
ENV
  } >.env
  # shellcheck disable=SC2016 # expands in the inner shell
  run -0 env -u PORT bash -euo pipefail -c '. scripts/common.sh; for name in PORT HOST LOG_LEVEL KEY; do echo "$name=$(setting "$name" unset)"; done'
  diff - <(echo "$output") <<'SETTINGS'
PORT=1
HOST=pa$word
LOG_LEVEL=a "b" $HOME 1
KEY=unset
SETTINGS
  rm .env && mkdir .env
  run -2 ./setup.sh
  [[ $output == *'.env is a directory'* ]]
}

@test ".env.example as .env serves" {
  cp .env.example .env
  serve "$(free_port)"
}

@test "tests see no .env, and a parent folder's is nobody's" {
  printf 'PORT=x\nLOG_FORMAT=pretty\n' >"$BATS_TEST_TMPDIR/.env"
  printf 'LOG_FORMAT=pretty\nLOG_LEVEL=off\nPASSWORD_MIN_LENGTH=20\nDATABASE_URL=x\n' >.env
  # The tests of a checkout whose .env would break them: their settings are theirs alone.
  run -0 env CARGO_TARGET_DIR="$REAL_TARGET" ./setup.sh test -- --test api original
}

@test "a bench whose candidate fails names it in the table and measures the rest" {
  rm benches/service/select.sql # what pgbench reads with
  run -0 env CARGO_TARGET_DIR="$REAL_TARGET" ./setup.sh bench --quick --only 256
  [[ $output == *'| pgbench, 64 clients **failed** | pgbench failed: '* ]]
  measured=$(grep -cE '^\| [a-z][^|*]* \| [1-9][0-9]* \| ' <<<"$output")
  [ "$measured" = 6 ]
}

@test "a container gets every setting of .env but those that say where" {
  shown=$(sed -n 's/^#\([A-Z_]*\)=.*/\1/p' .env.example | sort -u)
  given=$(sed -n '/^  app:/,/^    ports:/p' docker-compose.yml | sed -n 's/^      \([A-Z_]*\):.*/\1/p' | sort -u)
  [ "$(comm -23 <(echo "$shown") <(echo "$given") | xargs)" = 'ADMIN_HOST ADMIN_PORT DATABASE_DIRECT_URL' ]
}
