#!/usr/bin/env bash
# Describes every query of the source against a live PostgreSQL into .sqlx, so that builds need none.
#   scripts/sqlx-prepare.sh           after a query or a migration changed
#   scripts/sqlx-prepare.sh --check   only tells whether .sqlx is what it should be
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/with-servers.sh
. scripts/with-servers.sh

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
# Not by the binary: it cannot be built before its queries are described. The first table is sqlx's own.
# shellcheck disable=SC2046 # one word each
psql "$TEST_DATABASE_URL" --no-psqlrc --quiet --set ON_ERROR_STOP=1 \
  --command 'CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, success boolean NOT NULL)' \
  $(printf -- '--file %s ' migrations/*.sql)
# The macros describe their queries when the crate is compiled; a `cfg` that was never used before has it compiled anew.
DATABASE_URL=$TEST_DATABASE_URL SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$fresh SQLX_TMP=$fresh \
  cargo rustc --quiet --locked --lib --profile check -- --cfg "described_$$_$RANDOM"

if [ "${1:-}" = --check ]; then
  diff -r .sqlx "$fresh" || {
    echo '.sqlx is not what the queries and migrations say: run scripts/sqlx-prepare.sh and commit .sqlx' >&2
    exit 1
  }
  echo "$(find .sqlx -name '*.json' | wc -l) queries are as described"
else
  rm -f .sqlx/*.json
  cp "$fresh"/*.json .sqlx/
fi
