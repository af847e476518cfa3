#!/usr/bin/env bash
# Starts the service on a throw-away PostgreSQL and RabbitMQ, and looks at it from outside: with the guide's subscriber, with a
# browser, and with clients generated from its document.
#   scripts/live-checks.sh FOLDER   where FOLDER/bin has schemathesis, Playwright and pika
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
trap 'kill $service ${subscriber:-} 2>/dev/null; rm -f "$log" "${heard:-}"' EXIT
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

# It listens before the migrations are applied.
curl -sf --retry 30 --retry-delay 1 --retry-all-errors "http://$address/health/ready" >/dev/null

# The subscriber's guide: its program starts from more than a page, and keeps up with a user who is created, changed and
# deleted.
psql "$TEST_DATABASE_URL" --no-psqlrc --quiet --command \
  "INSERT INTO users (name, surname, password) SELECT 'Иван', 'Иванов', '\$argon2id\$' FROM generate_series(1, 250)"
heard=$(mktemp)
"$tools/bin/python" docs/examples/subscriber.py "$TEST_RABBITMQ_URL" "http://$address" 3 >"$heard" &
subscriber=$!
for _ in {1..100}; do
  ! grep -q '^ready' "$heard" || break
  sleep 0.1
done
json=(-sf -H 'Content-Type: application/json' -H 'X-Request-Id: guide-1')
user=$(curl "${json[@]}" "http://$address/users" -d '{"name": "Анна", "surname": "Орлова", "password": "secret123"}' | sed 's/.*"id":\([0-9]*\).*/\1/')
curl "${json[@]}" -X PUT "http://$address/users/$user" -d '{"name": "Яна"}' >/dev/null
curl "${json[@]}" -X DELETE "http://$address/users/$user"
timeout 30 tail --pid "$subscriber" -f /dev/null
diff "$heard" - <<HEARD
ready 250 users
user.created $user 1 guide-1
user.updated $user 2 guide-1
user.deleted $user 3 guide-1
HEARD
echo 'ok - the subscriber of the guide hears of each change, in order'

"$tools/bin/python" tests/browser/docs.py "http://$address" "${SCREENSHOTS:-}"
"$tools/bin/schemathesis" --config-file tests/schemathesis.toml run "http://$address/openapi.json" --checks all --max-examples 50 --seed 1
if grep '"level":"error"' "$log"; then
  echo 'the service logged errors' >&2
  exit 1
fi
