# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# What every part of setup.sh uses: said steps, settings, ports, children, and cleaning up. Sourced by setup.sh.

state=$PWD/.local
child=''           # the process group in the foreground
throw_away=''      # a pair that must not outlive us
started_dev=no     # whether this run started the development pair
service_pid_file='' # where run_child notes its child
begun=$EPOCHREALTIME

say() { printf '==> %s\n' "$*" >&2; }

fail() {
  printf 'setup.sh: %s\n' "$*" >&2
  exit 1
}

begin() {
  begun=$EPOCHREALTIME
  say "$1 …"
}

finish() {
  local now=$EPOCHREALTIME tenths
  tenths=$(((${now/[.,]/} - ${begun/[.,]/}) / 100000))
  say "$1  ($((tenths / 10)).$((tenths % 10)) s)"
}

# A setting of the environment or of .env, which is read and never run; else the default.
setting() {
  local name=$1 value=${!1:-} line
  if [ -z "$value" ] && [ -f .env ]; then
    while IFS= read -r line || [ -n "$line" ]; do
      line=${line%$'\r'} line=${line#export }
      case $line in "$name="*) value=${line#*=} ;; esac
    done <.env
    value=${value#[\"\']} value=${value%[\"\']}
  fi
  printf '%s' "${value:-${2:-}}"
}

# shellcheck disable=SC2016 # expands in the inner shell
port_answers() { timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$1" "$2" 2>/dev/null; }

# Whether the server of a URL takes connections.
url_answers() {
  local authority=${1#*://} port
  authority=${authority%%[/?]*} authority=${authority##*@}
  port=$2
  case $authority in
    \[*\]) ;; # an IPv6 literal, and no port after it
    *:*) port=${authority##*:} authority=${authority%:*} ;;
  esac
  authority=${authority#\[} authority=${authority%\]}
  [ -n "$authority" ] && port_answers "$authority" "$port"
}

# A port below the ephemeral range that nobody listens on.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    case " ${taken_ports:-} " in *" $port "*) continue ;; esac
    port_answers 127.0.0.1 $port || break
  done
  taken_ports="${taken_ports:-} $port"
  printf -v "$1" %s "$port"
}

# Polls a condition ten times a second, for a minute at most; a condition that can no longer come about sets hopeless=yes.
await() {
  local polls=600 hopeless=no
  until "$@" 2>/dev/null; do
    [ $((polls -= 1)) -gt 0 ] && [ $hopeless = no ] || return 1
    sleep 0.1
  done
}

alive() { [ -n "${1:-}" ] && kill -0 "$1" 2>/dev/null; }
gone() { ! alive "$1"; }

# Runs a command in a process group of its own, so that a signal to us reaches all of it, once.
run_child() {
  local status=0
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  [ -z "$service_pid_file" ] || echo "$child" >"$service_pid_file"
  wait "$child" || status=$?
  # A signal ends `wait` before the child ends.
  while alive "$child"; do
    status=0
    wait "$child" || status=$?
  done
  child=''
  return "$status"
}

on_signal() {
  if [ -n "$child" ]; then
    kill -s TERM -- "-$child" 2>/dev/null || true
  else
    exit "$1"
  fi
}

clean_up() {
  trap '' INT TERM
  [ -z "$throw_away" ] || { sweep "$throw_away" && rm -rf "$throw_away"; }
  [ "$started_dev" = no ] || stop_pair "$dev"
}

trap 'on_signal 130' INT
trap 'on_signal 143' TERM HUP
trap clean_up EXIT
