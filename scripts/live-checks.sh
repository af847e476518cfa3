#!/usr/bin/env bash
# Starts the service on a throw-away PostgreSQL and RabbitMQ, and looks at it from outside: with a browser, and with
# clients generated from its document.
#   scripts/live-checks.sh FOLDER   where FOLDER/bin has schemathesis and Playwright
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$1
# shellcheck source=scripts/with-servers.sh
. scripts/with-servers.sh

log=$(mktemp)
SQLX_OFFLINE=true cargo build --quiet --locked
DATABASE_URL=$TEST_DATABASE_URL RABBITMQ_URL=$TEST_RABBITMQ_URL PORT=0 \
  "${CARGO_TARGET_DIR:-target}/debug/user-management-api" >"$log" &
service=$!
trap 'kill $service; rm -f "$log"' EXIT
for _ in {1..100}; do
  address=$(sed -n 's/.*"event":"Listening".*"address":"\([^"]*\)".*/\1/p' "$log")
  [ -z "$address" ] || break
  sleep 0.1
done
[ -n "$address" ] || {
  echo 'the service did not start:' >&2
  cat "$log" >&2
  exit 1
}

"$tools/bin/python" tests/browser/docs.py "http://$address" "${SCREENSHOTS:-}"
"$tools/bin/schemathesis" run "http://$address/openapi.json" --checks all --max-examples 50 --seed 1
if grep '"level":"error"' "$log"; then
  echo 'the service logged errors' >&2
  exit 1
fi
