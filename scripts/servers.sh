# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# A private pair of PostgreSQL and RabbitMQ: a folder with `ports`, `postgres/` and `rabbitmq/`, on ports of its own, out of
# the way of the system's servers. Each of its processes has SETUP_PAIR=folder in its environment and is identified by
# that: a process id in a stale file may belong to another process. Sourced by setup.sh.

# PostgreSQL refuses to run as root, so for root it runs as another user.
postgres_user() {
  if [ "$(id -u)" != 0 ]; then id -un; elif id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

# as_postgres FOLDER COMMAND…: runs a command as PostgreSQL's user. Uses setpriv, because runuser and su stay as a process in between.
as_postgres() {
  local user home=$1
  shift
  if [ "$(id -u)" = 0 ]; then
    user=$(postgres_user)
    # Without root's environment, which any superuser of PostgreSQL could read.
    setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups env -i HOME="$home" PATH="$PATH" LANG="${LANG:-C}" \
      ${LD_LIBRARY_PATH:+LD_LIBRARY_PATH="$LD_LIBRARY_PATH"} ${SETUP_PAIR:+SETUP_PAIR="$SETUP_PAIR"} \
      ${PGPASSWORD:+PGPASSWORD="$PGPASSWORD"} "$@"
  else
    "$@"
  fi
}

# Where data and packages are: .local, unless PostgreSQL's user may not go there (root's home) or RabbitMQ's scripts cannot
# cope with its name (a space).
data_root() {
  local root=$state
  if [[ $state == *[!A-Za-z0-9._/@+-]* ]] || ! as_postgres / test -x "$state"; then
    if [ "$(id -u)" = 0 ]; then root=/var/lib; else root=${XDG_DATA_HOME:-$HOME/.local/share}; fi
    [[ $root != *[!A-Za-z0-9._/@+-]* ]] || fail "neither this folder nor $root has a name that RabbitMQ's scripts can handle: move this folder"
    root=$root/user-management-api/$(printf %s "$state" | cksum | cut -d ' ' -f 1)
    mkdir -p "$root"
    ln -sfn "$root" "$state/data"
  fi
  printf '%s' "$root"
}

random_word() { od -An -N 16 -t x1 /dev/urandom | tr -d ' \n'; }

# need_secrets FOLDER: creates the pair's passwords once. They matter: a superuser of PostgreSQL can run programs as its user.
need_secrets() {
  if [ ! -f "$1/secrets" ]; then
    # Earlier versions gave all pairs the same passwords.
    if [ -f "$1/postgres/initialised" ] || [ -d "$1/rabbitmq/mnesia" ]; then : >"$1/known-passwords"; fi
    local postgres rabbitmq
    postgres=$(random_word)
    rabbitmq=$(random_word)
    [ "${#postgres} ${#rabbitmq}" = '32 32' ] || fail "there is no randomness for passwords: /dev/urandom"
    (umask 077 && printf 'PG_PASSWORD=%s\nAMQP_PASSWORD=%s\n' "$postgres" "$rabbitmq" >"$1/secrets.new") || fail "cannot write $1/secrets"
    mv "$1/secrets.new" "$1/secrets"
  fi
  # shellcheck disable=SC1091
  . "$1/secrets"
}

# Gives a file or folder to PostgreSQL's user alone. It lies in a folder of ours: in one of another user's, a link could be in
# its place.
give_to_postgres() {
  chmod u=rwX,go= "$1"
  [ "$(id -u)" != 0 ] || chown "$(postgres_user)" "$1"
}

choose_ports() {
  local name
  for name in PG_PORT AMQP_PORT MANAGEMENT_PORT DIST_PORT EPMD_PORT CTL_PORT; do
    free_port "$name"
    printf '%s=%s\n' "$name" "${!name}"
  done >"$1/ports.new"
  chmod 600 "$1/ports.new"
  mv "$1/ports.new" "$1/ports"
}

# read_ports FOLDER: and passwords.
read_ports() {
  # shellcheck disable=SC1091
  . "$1/ports"
  # shellcheck disable=SC1091
  [ ! -f "$1/secrets" ] || . "$1/secrets"
}

ports_are_free() {
  local name
  for name in PG_PORT AMQP_PORT MANAGEMENT_PORT DIST_PORT EPMD_PORT; do
    ! port_answers 127.0.0.1 "${!name}" || return 1
  done
}

# processes_of FOLDER [PROCESS_ID]: prints the pair's processes, or the given one if it is the pair's. Only those of our user and
# PostgreSQL's count: any user can give a process the same environment.
processes_of() {
  local pid owners
  owners=" $(id -u) $(id -u "$(postgres_user)") "
  # shellcheck disable=SC2086 # a pattern
  while read -r pid; do
    [[ $owners != *" $(stat -c %u "/proc/$pid" 2>/dev/null) "* ]] || echo "$pid"
  done < <(grep -lzxF "SETUP_PAIR=$1" /proc/${2:-[0-9]*}/environ 2>/dev/null | cut -d / -f 3)
}

# first_word_of FOLDER FILE: prints the number in the first line of a file of PostgreSQL's data. Reads it as PostgreSQL's user, who
# could have replaced it by a link or a pipe.
first_word_of() {
  local word
  word=$(as_postgres "$1" timeout 2 head -c 20 "$1/data/$2" 2>/dev/null | head -n 1 | tr -d '[:space:]') || true
  [[ ! $word =~ ^[0-9]{1,9}$ ]] || echo "$word"
}

or_none() { if [[ $1 =~ ^[0-9]{1,9}$ ]]; then echo "$1"; else echo none; fi; }
postgres_pid() { processes_of "$1" "$(or_none "$(first_word_of "$1/postgres" postmaster.pid)")"; }
rabbitmq_pid() { processes_of "$1" "$(or_none "$(tr -d '[:space:]' 2>/dev/null <"$1/rabbitmq/pid" || true)")"; }

pair_is_up() {
  # A pair with the old, known passwords counts as down: its restart changes them.
  [ -f "$1/ports" ] && [ -f "$1/secrets" ] && [ ! -f "$1/known-passwords" ] || return 1
  read_ports "$1"
  [ -n "$(postgres_pid "$1")" ] && [ -n "$(rabbitmq_pid "$1")" ] &&
    port_answers 127.0.0.1 "$PG_PORT" && port_answers 127.0.0.1 "$AMQP_PORT" && port_answers 127.0.0.1 "$MANAGEMENT_PORT"
}

# start_pair FOLDER dev|test|chaos|bench [POSTGRES_VERSION]
start_pair() {
  local pair=$1 kind=$2 version=${3:-} attempt
  begin "PostgreSQL and RabbitMQ"
  stop_pair "$pair" quietly
  need_secrets "$pair"
  [ ! -f "$pair/ports" ] || chmod 600 "$pair/ports"
  for attempt in 1 2 3; do
    # Keep the last ports, unless they have been taken meanwhile.
    if [ "$attempt" = 1 ] && [ -f "$pair/ports" ] && read_ports "$pair" && ports_are_free; then :; else choose_ports "$pair"; fi
    start_rabbitmq "$pair"
    if start_postgres "$pair" "$kind" "$version" && await rabbitmq_answers "$pair" && change_known_passwords "$pair"; then
      finish "PostgreSQL $(first_word_of "$pair/postgres" PG_VERSION) on 127.0.0.1:$PG_PORT, RabbitMQ on 127.0.0.1:$AMQP_PORT"
      return
    fi
    [ "$attempt" = 3 ] || stop_pair "$pair" quietly
  done
  tail -n 20 "$pair/postgres/log" "$pair/rabbitmq/out" >&2 || true
  stop_pair "$pair" quietly
  fail "PostgreSQL and RabbitMQ did not start: the ends of their logs are above"
}

# start_postgres FOLDER KIND [POSTGRES_VERSION]: and waits until it answers.
start_postgres() {
  local pair=$1 kind=$2 bin folder=$1/postgres options made_by
  bin=$(postgres_bin "${3:-}")
  # Another major version's program cannot read what is there.
  made_by=$(first_word_of "$folder" PG_VERSION)
  if [ -z "${3:-}" ] && [ -n "$made_by" ] && [ "${bin%/"$made_by"/bin}" = "$bin" ]; then
    bin=$(find /usr/lib/postgresql "$(data_root)/packages/postgresql" -path "*/$made_by/bin" -print -quit 2>/dev/null || true)
    [ -n "$bin" ] || fail "$folder/data was made by PostgreSQL $made_by, which is not here any more: install it, or give the data up by ./setup.sh down --purge"
  fi
  prepare_postgres_folder "$folder"
  if [ ! -f "$folder/initialised" ]; then
    rm -rf "$folder/data"
    mkdir "$folder/data"
    give_to_postgres "$folder/data"
    # shellcheck disable=SC2153 # read_ports sets it
    (umask 077 && printf '%s\n' "$PG_PASSWORD" >"$folder/password")
    give_to_postgres "$folder/password"
    postgres_program initdb -D "$folder/data" -U postgres --auth=scram-sha-256 --pwfile="$folder/password" -E UTF8 \
      --locale=C.UTF-8 -N || return
    rm -f "$folder/password"
    : >"$folder/initialised"
  fi
  options="-p $PG_PORT -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300 -c log_timezone=UTC"
  # A throw-away server need not wait for the disk, unless the tests kill it.
  [ "$kind" != test ] || options+=' -c fsync=off -c synchronous_commit=off -c full_page_writes=off'
  postgres_program pg_ctl start --wait --silent -D "$folder/data" -l "$folder/log" -o "$options" || return
  if [ "$kind" = dev ] && [ ! -f "$folder/created" ]; then
    as_superuser -c 'CREATE DATABASE userdb' || return
    : >"$folder/created"
  fi
}

# prepare_postgres_folder FOLDER: makes the folder ours, and the log in it PostgreSQL's.
prepare_postgres_folder() {
  mkdir -p "$1"
  [ "$(id -u)" != 0 ] || chown 0:0 "$1"
  chmod 711 "$1"
  # Earlier versions gave the folder to PostgreSQL's user, who may have left links.
  find "$1" -maxdepth 1 -type l -delete
  rm -f "$1/log" "$1/password"
  : >"$1/log"
  give_to_postgres "$1/log"
}

# change_known_passwords FOLDER: changes the passwords of a pair from before they were random. Safe to repeat after a crash.
change_known_passwords() {
  local pair=$1 folder=$1/postgres bin
  [ -f "$pair/known-passwords" ] || return 0
  bin=$(postgres_bin)
  (umask 077 && printf "ALTER ROLE postgres PASSWORD '%s'\n" "$PG_PASSWORD" >"$folder/password") || return
  give_to_postgres "$folder/password" || return
  as_superuser -v ON_ERROR_STOP=1 -f "$folder/password" || return
  rm -f "$folder/password"
  printf '%s' "$AMQP_PASSWORD" | (rabbitmq_program "$pair" rabbitmqctl --quiet change_password guest) || return
  rm -f "$pair/known-passwords"
}

# as_superuser ARGUMENTS…: runs psql, also with the old password if the pair may still have it. Uses the caller's $pair, $folder
# and $bin.
as_superuser() {
  local -a psql=(psql -X -q -h 127.0.0.1 -p "$PG_PORT" -U postgres -d postgres)
  PGPASSWORD=$PG_PASSWORD postgres_program "${psql[@]}" "$@" ||
    { [ -f "$pair/known-passwords" ] && PGPASSWORD=postgres postgres_program "${psql[@]}" "$@"; }
}

# Runs a program of PostgreSQL as its user. Uses the caller's $pair, $folder and $bin.
postgres_program() {
  (
    # Redirects inside the subshell, so that messages of our signal traps do not go to the log.
    exec </dev/null >>"$folder/log" 2>&1 7>&- 8>&- 9>&-
    local program=$bin/$1
    shift
    # Debian has psql in a package of its own, which may be there already.
    [ -x "$program" ] || program=$(command -v "${program##*/}")
    export SETUP_PAIR=$pair
    export_package postgresql
    as_postgres "$folder" "$program" "$@"
  )
}

# A node of a cluster has a name of its own.
node_name() { printf '%s@localhost' "$(cat "$1/node" 2>/dev/null || echo rabbit)"; }

rabbitmq_environment() {
  local folder=$1/rabbitmq
  cat <<ENVIRONMENT
HOME=$folder
SETUP_PAIR=$1
RABBITMQ_NODENAME=$(node_name "$1")
RABBITMQ_NODE_IP_ADDRESS=127.0.0.1
RABBITMQ_NODE_PORT=$AMQP_PORT
RABBITMQ_DIST_PORT=$DIST_PORT
RABBITMQ_CTL_DIST_PORT_MIN=$CTL_PORT
RABBITMQ_CTL_DIST_PORT_MAX=$((CTL_PORT + 9))
ERL_EPMD_PORT=$EPMD_PORT
ERL_EPMD_ADDRESS=127.0.0.1
ERL_INETRC=$folder/inetrc
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

# rabbitmq_program FOLDER PROGRAM ARGUMENTS…: replaces the calling shell (exec).
rabbitmq_program() {
  local pair=$1 program=$2 package
  local -a environment
  mapfile -t environment < <(rabbitmq_environment "$1")
  shift 2
  package=$(rabbitmq_package "$pair")
  export_package "${package:-rabbitmq-server}"
  exec env "${environment[@]}" setsid --wait "$(rabbitmq_bin "$package")/$program" "$@"
}

# Prints the package of a pair's RabbitMQ, if it is not the system's or apt's.
rabbitmq_package() { cat "$1/rabbitmq-package" 2>/dev/null || true; }

start_rabbitmq() {
  local pair=$1 folder=$1/rabbitmq
  mkdir -p "$folder"
  chmod -R go= "$folder"
  # Recreated, because another user may still have the old files open.
  rm -f "$folder/pid" "$folder/rabbitmq.conf"
  # Erlang generates its own cookie from little more than the time.
  if [ "$(stat -c %s "$folder/.erlang.cookie" 2>/dev/null)" != 32 ]; then
    rm -f "$folder/.erlang.cookie"
    (umask 077 && random_word >"$folder/.erlang.cookie")
    chmod 400 "$folder/.erlang.cookie"
  fi
  : >"$folder/out" # otherwise the last start's success would be taken for this one's
  echo '[rabbitmq_management].' >"$folder/enabled_plugins"
  # The node is at localhost, which not every container's /etc/hosts knows.
  echo '{host, {127,0,0,1}, ["localhost"]}. {lookup, [file, native]}.' >"$folder/inetrc"
  printf '%s\n' "listeners.tcp.default = 127.0.0.1:$AMQP_PORT" "management.tcp.ip = 127.0.0.1" \
    "management.tcp.port = $MANAGEMENT_PORT" "disk_free_limit.absolute = 100MB" "default_pass = $AMQP_PASSWORD" >"$folder/rabbitmq.conf"
  [ ! -f "$pair/cluster.conf" ] || cat "$pair/cluster.conf" >>"$folder/rabbitmq.conf"
  rabbitmq_program "$pair" rabbitmq-server </dev/null >"$folder/out" 2>&1 7>&- 8>&- 9>&- &
  rabbitmq_launcher=$!
  disown
}

# RabbitMQ prints this once all listeners are open, including those of its plugins.
rabbitmq_answers() {
  ! grep -qs 'completed with' "$1/rabbitmq/out" || return 0
  alive "$rabbitmq_launcher" || hopeless=yes
  return 1
}

# start_pgbouncer FOLDER [LINE]: starts pgbouncer in transaction mode in front of the pair's PostgreSQL, with an extra line of
# configuration; exports TEST_POOLER_URL.
start_pgbouncer() {
  local pair=$1 folder pooler_port
  free_port pooler_port
  folder=$1/pgbouncer-$pooler_port
  mkdir -p "$folder"
  chmod 711 "$folder"
  : >"$folder/pgbouncer.ini"
  give_to_postgres "$folder/pgbouncer.ini"
  cat >"$folder/pgbouncer.ini" <<CONFIGURATION
[databases]
* = host=127.0.0.1 port=$PG_PORT user=postgres password=$PG_PASSWORD
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $pooler_port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $folder/users
pool_mode = transaction
default_pool_size = 20
max_client_conn = 1000
server_login_retry = 0.1
${2:-}
CONFIGURATION
  : >"$folder/users"
  give_to_postgres "$folder/users"
  printf '"postgres" "%s"\n' "$PG_PASSWORD" >"$folder/users"
  SETUP_PAIR=$pair as_postgres "$folder" setsid "$(command -v pgbouncer)" "$folder/pgbouncer.ini" \
    </dev/null >"$folder/log" 2>&1 9>&- &
  disown
  await port_answers 127.0.0.1 "$pooler_port" || fail "pgbouncer did not start: see $folder/log"
  export TEST_POOLER_URL=postgresql://postgres:$PG_PASSWORD@127.0.0.1:$pooler_port/postgres
}

# stop_pair FOLDER [quietly]: stops the pair cleanly and ends processes left behind.
stop_pair() {
  local pair=$1 quietly=${2:-} postgres rabbitmq
  # One substitution a command: bash 5.2 misreads the trap of a signal that comes between two.
  postgres=$(postgres_pid "$pair")
  rabbitmq=$(rabbitmq_pid "$pair")
  if [ -n "$postgres$rabbitmq" ]; then
    [ -n "$quietly" ] || begin "stop PostgreSQL and RabbitMQ"
    [ -z "$rabbitmq" ] || kill "$rabbitmq" 2>/dev/null || true
    [ -z "$postgres" ] || kill -s INT "$postgres" 2>/dev/null || true
    patience=20 await gone "$rabbitmq" || true
    patience=20 await gone "$postgres" || true
    [ -n "$quietly" ] || finish "stopped PostgreSQL and RabbitMQ"
  fi
  sweep "$pair"
  rm -f "$pair/rabbitmq/pid" "$pair/postgres/data/postmaster.pid"
}

# discard_pair FOLDER: kills the pair and deletes its data.
discard_pair() {
  local postgres node
  for node in "$1"/cluster/*/; do
    [ ! -d "$node" ] || sweep "${node%/}"
  done
  postgres=$(postgres_pid "$1")
  # Killed outright, it would leave its shared memory behind.
  if [ -n "$postgres" ]; then
    kill -s QUIT "$postgres" 2>/dev/null || true
    patience=5 await gone "$postgres" || true
  fi
  sweep "$1"
  rm -rf "$1"
}

# Kills the pair's remaining processes: epmd, which outlives RabbitMQ, and children of a killed server.
sweep() {
  local processes turn
  for turn in 1 2 3 4 5; do # what forks meanwhile is seen in the next turn
    processes=$(processes_of "$1")
    [ -n "$processes" ] || return 0
    # shellcheck disable=SC2086 # one word each
    kill -s KILL $processes 2>/dev/null || true
    sleep 0.05
  done
}

# discard_abandoned ROOT: discards the throw-away pairs of killed runs.
discard_abandoned() {
  local abandoned
  for abandoned in "$1"/test-*/; do
    abandoned=${abandoned%/}
    [ ! -f "$abandoned/owner" ] || alive "$(cat "$abandoned/owner")" || discard_pair "$abandoned"
  done
}

# start_throw_away_pair test|chaos|bench [POSTGRES_VERSION]: starts a pair in its own folder; the exit trap stops and deletes it.
start_throw_away_pair() {
  local root
  root=$(data_root)
  discard_abandoned "$root"
  need_servers "${2:-}"
  throw_away=$(mktemp -d "$root/test-XXXXXX")
  chmod 711 "$throw_away"
  echo $$ >"$throw_away/owner"
  [ -z "$rabbitmq" ] || echo "$rabbitmq" >"$throw_away/rabbitmq-package"
  start_pair "$throw_away" "$@"
}
