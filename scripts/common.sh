# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# What every part of setup.sh uses: messages, settings, ports, child processes, clean-up. Sourced by setup.sh.

state=$PWD/.local
record=$state/record  # what this checkout has started, and nothing else
child=''              # the process group in the foreground
starting=''           # set while a child is starting and its id is not known yet
reader=''             # the process that waits for the end of standard input
interrupted=''        # the exit code after a signal
throw_away=''         # a pair of servers that must not outlive us
in_use=no             # whether we hold a share of the servers' lock
service_record=''     # where run_child notes its child
begun=$EPOCHREALTIME
arrow='==>'
[ ! -t 2 ] || arrow=$'\e[1;32m==>\e[0m'

# The reader of our output may be gone, which must not stop the clean-up.
say() { printf '%s %s\n' "$arrow" "$*" >&2 || true; }

fail() {
  if [ -n "$interrupted" ]; then say "stopped"; else printf 'setup.sh: %s\n' "$*" >&2; fi
  exit "${interrupted:-1}"
}

bad_setting() {
  printf 'setup.sh: %s\n' "$*" >&2
  exit 2
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

# Prints a setting from the environment or from ./.env, which is parsed and never executed; otherwise the default. As in the
# service, an empty variable of the environment overrides .env, and the last of two entries in .env counts.
setting() {
  local name=$1 value=''
  if [ -n "${!name+set}" ]; then
    value=${!name}
  else
    read_env_file
    value=${env_file[$name]:-}
  fi
  printf '%s' "${value:-${2:-}}"
}

declare -A env_file=() variables=()
env_file_is_read=no

# Reads the environment that we were started with: our own shell variables are not settings.
read_environment() {
  local entry
  while IFS= read -r -d '' entry; do
    variables[${entry%%=*}]=${entry#*=}
  done <"/proc/$$/environ"
}
read_environment

# Follows the rules of src/config/env_file.rs. The service reports malformed lines, so this skips them.
read_env_file() {
  local line name number=0
  [ $env_file_is_read = no ] && [ -e .env ] || return 0
  env_file_is_read=yes
  [ ! -d .env ] || bad_setting '.env is a directory, but should be a file'
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    [ $number != 1 ] || line=${line#$'\xef\xbb\xbf'}
    [[ ${line%$'\r'} =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_.-][A-Za-z0-9_.-]*)[[:space:]]*=[[:space:]]*(.*)$ ]] || continue
    name=${BASH_REMATCH[2]}
    ! env_value "${BASH_REMATCH[3]}" || env_file[$name]=$REPLY
  done <.env
}

# env_value TEXT: sets REPLY to the value of a line's text; fails if a quote is not closed or text follows the closing one.
env_value() {
  local text=${1%"${1##*[![:space:]]}"} quote='' letter name rest
  REPLY=''
  case $text in
    \'*)
      text=${text#\'}
      [[ $text == *\'* ]] || return
      REPLY=${text%%\'*} rest=${text#*\'}
      [[ $rest =~ ^[[:space:]]*(#.*)?$ ]]
      return
      ;;
    \"*) quote=\" text=${text#\"} ;;
    \#*) return ;;
    *) text=${text%%[[:space:]]#*} text=${text%"${text##*[![:space:]]}"} ;;
  esac
  while [ -n "$text" ]; do
    letter=${text:0:1}
    if [ -n "$quote" ] && [ "$letter" = \" ]; then
      [[ ${text:1} =~ ^[[:space:]]*(#.*)?$ ]]
      return
    elif [[ $text == '\$'* ]] || { [ -n "$quote" ] && [[ $text == \\\\* || $text == \\\"* ]]; }; then
      REPLY+=${text:1:1} text=${text:2}
    elif [ -n "$quote" ] && [[ $text == '\n'* ]]; then
      REPLY+=$'\n' text=${text:2}
    elif [[ $text =~ ^\$(\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*)) ]] &&
      name=${BASH_REMATCH[2]}${BASH_REMATCH[3]} && [ -n "${variables[$name]+set}${env_file[$name]+set}" ]; then
      text=${text#"${BASH_REMATCH[0]}"}
      REPLY+=${variables[$name]-${env_file[$name]-}}
    else
      REPLY+=$letter text=${text:1}
    fi
  done
  [ -z "$quote" ]
}

# shellcheck disable=SC2016 # expands in the inner shell
port_answers() { timeout 2 bash -c 'exec 3<>"/dev/tcp/$1/$2"' _ "$1" "$2" 2>/dev/null; }

# address_of URL DEFAULT_PORT: prints host and port.
address_of() {
  local authority=${1#*://}
  authority=${authority%%[/?#]*} authority=${authority##*@}
  # A Unix socket, or a host in the query: only the service interprets these.
  case $1 in *[?\&]host=* | *[?\&]hostaddr=* | *%2[Ff]*) return ;; esac
  if [[ $authority =~ ^\[([^]]+)\](:([0-9]+))?$ || $authority =~ ^([^:]+)(:([0-9]+))?$ ]]; then
    printf '%s %s' "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]:-$2}"
  fi
}

# Prints a URL with its password masked.
masked() { sed -E 's#(://[^:/?]*):.*@#\1:***@#; s#([?&]password=)[^&]*#\1***#' <<<"$1"; }

# Sets the named variable to a free port below the ephemeral range.
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

# Polls a condition ten times a second, for $patience seconds. A condition that can no longer become true sets hopeless=yes.
await() {
  local deadline=$((SECONDS + ${patience:-60})) hopeless=no
  until "$@"; do
    [ $hopeless = no ] && [ -z "$interrupted" ] && [ $SECONDS -le $deadline ] || return 1
    sleep 0.1
  done
}

# A zombie counts as gone, because our parent may never reap it.
alive() {
  local stat
  [ -n "${1:-}" ] && { read -r stat <"/proc/$1/stat"; } 2>/dev/null && [[ ${stat##*) } != [ZX]* ]]
}
gone() { ! alive "$1"; }

# Runs a command in its own process group, so that each of its processes gets a signal exactly once.
run_child() {
  local status=0
  set -m
  starting=yes
  "$@" </dev/null 9>&- &
  child=$!
  starting=''
  set +m
  [ -z "$interrupted" ] || kill -s TERM -- "-$child" 2>/dev/null || true
  [ -z "$service_record" ] || echo "$child" >>"$service_record"
  wait "$child" || status=$?
  # A signal ends `wait` before the child ends; the service drains within 25 s.
  if [ -n "$interrupted" ]; then
    patience=30 interrupted='' await gone "$child" || kill -s KILL -- "-$child" 2>/dev/null || true
    status=0
    wait "$child" || status=$?
  fi
  child=''
  return "$status"
}

on_signal() {
  interrupted=$1
  if [ -n "$child" ]; then
    kill -s TERM -- "-$child" 2>/dev/null || true
  elif [ -z "$starting" ]; then
    say "stopped"
    exit "$1"
  fi
}

clean_up() {
  trap '' INT TERM HUP
  interrupted=''
  set +e
  [ -z "$reader" ] || kill "$reader" 2>/dev/null
  [ -z "$throw_away" ] || discard_pair "$throw_away"
  [ "$in_use" = no ] || release_servers
}

trap 'on_signal 130' INT
trap 'on_signal 143' TERM HUP
trap : PIPE # unlike an ignored signal, a trapped one is reset to its default in child processes
trap clean_up EXIT
