#!/usr/bin/env bash
# Writes descriptions of all queries in the source to .sqlx, from a live PostgreSQL, so that builds need no database.
#   scripts/sqlx-prepare.sh           run it after changing a query or a migration
#   scripts/sqlx-prepare.sh --check   only checks whether .sqlx is up to date
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/with-servers.sh
. scripts/with-servers.sh

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
# psql applies the migrations: the binary cannot be built before its queries are described. The first table is sqlx's own.
# shellcheck disable=SC2046 # one word each
psql "$TEST_DATABASE_URL" --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
  --command 'CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, success boolean NOT NULL)' \
  $(printf -- '--file %s ' migrations/*.sql)
# The macros describe their queries when the crate is compiled; a new `cfg` forces that.
DATABASE_URL=$TEST_DATABASE_URL SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$fresh SQLX_TMP=$fresh \
  cargo rustc --quiet --locked --lib --profile check -- --cfg "described_$$_$RANDOM"

if [ "${1:-}" = --check ]; then
  diff -r .sqlx "$fresh" || {
    echo '.sqlx does not match the queries and migrations: run scripts/sqlx-prepare.sh and commit .sqlx' >&2
    exit 1
  }
  echo "$(find .sqlx -name '*.json' | wc -l) query descriptions are up to date"
else
  rm -f .sqlx/*.json
  cp "$fresh"/*.json .sqlx/
fi
