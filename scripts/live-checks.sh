#!/usr/bin/env bash
# Starts the service on a throw-away PostgreSQL and RabbitMQ and tests it from outside: with the guide's subscriber, a browser,
# and requests generated from its OpenAPI document.
#   scripts/live-checks.sh FOLDER   where FOLDER/bin has schemathesis, Playwright and pika
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$1
# shellcheck source=scripts/with-servers.sh
. scripts/with-servers.sh

log=$(mktemp) heard=$(mktemp)
binary=${CARGO_TARGET_DIR:-target}/debug/user-management-api
export DATABASE_URL=$TEST_DATABASE_URL RABBITMQ_URL=$TEST_RABBITMQ_URL PORT=0
trap 'kill $service ${subscriber:-} 2>/dev/null; rm -f "$log" "$heard"' EXIT

sql() { psql "$TEST_DATABASE_URL" --no-psqlrc --quiet --set ON_ERROR_STOP=1 --command "$1"; }

# Starts the service; sets its address.
start_service() {
  : >"$log"
  "$binary" >"$log" &
  service=$!
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
}

SQLX_OFFLINE=true cargo build --quiet --locked
start_service

# The guide's subscriber: it starts with more users than fit on a page, and follows a user that is created, changed and
# deleted.
sql "INSERT INTO users (name, surname, password) SELECT 'Иван', 'Иванов', '\$argon2id\$' FROM generate_series(1, 250)"
"$tools/bin/python" docs/examples/subscriber.py "$TEST_RABBITMQ_URL" "http://$address" 256 >"$heard" &
subscriber=$!
for _ in {1..100}; do
  ! grep -q '^ready' "$heard" || break
  sleep 0.1
done
# A repeat of a version that the list already had.
curl -sf "${TEST_RABBITMQ_MANAGEMENT_URL%/}/api/exchanges/%2f/user_events/publish" -H 'Content-Type: application/json' -d @- >/dev/null <<'REPEAT'
{"properties": {}, "routing_key": "user.updated", "payload_encoding": "string", "payload":
 "{\"event_type\":\"user.updated\",\"user_id\":2,\"trace_id\":\"repeat\",\"timestamp\":\"2026-01-01T00:00:00.000Z\",\"data\":{\"name\":\"И\",\"surname\":\"И\"},\"event_id\":\"01a21453-f2b2-7452-ba6c-e68a865c0609\",\"version\":1}"}
REPEAT
json=(-sf -H 'Content-Type: application/json' -H 'X-Request-Id: guide-1')
user=$(curl "${json[@]}" "http://$address/users" -d '{"name": "Анна", "surname": "Орлова", "password": "secret123"}' | sed 's/.*"id":\([0-9]*\).*/\1/')
curl "${json[@]}" -X PUT "http://$address/users/$user" -d '{"name": "Яна"}' >/dev/null
curl "${json[@]}" -X DELETE "http://$address/users/$user"
# Three changes that a restore undoes. The backup is a table in the same database.
sql "CREATE TABLE backup AS SELECT * FROM users"
for name in А Б В; do
  curl "${json[@]}" -X PUT "http://$address/users/1" -d "{\"name\": \"$name\"}" >/dev/null
done
for _ in {1..100}; do
  ! grep -q '^user.updated 1 4 ' "$heard" || break
  sleep 0.1
done
kill $service
wait $service
sql "TRUNCATE users; INSERT INTO users OVERRIDING SYSTEM VALUE SELECT * FROM backup"
"$binary" after-restore --republish >/dev/null 2>&1
start_service
timeout 30 tail --pid "$subscriber" -f /dev/null
diff <(grep -v 'user.updated [0-9]* 1000001 ' "$heard") - <<HEARD
ready 250 users
user.created $user 1 guide-1
user.updated $user 2 guide-1
user.deleted $user 3 guide-1
user.updated 1 2 guide-1
user.updated 1 3 guide-1
user.updated 1 4 guide-1
HEARD
[ "$(grep -c 'user.updated [0-9]* 1000001 ' "$heard")" = 250 ]
echo 'ok - the subscriber of the guide hears of each change, in order, and takes over what a restore brought back'

"$tools/bin/python" tests/browser/docs.py "http://$address" "${SCREENSHOTS:-}"
"$tools/bin/schemathesis" --config-file tests/schemathesis.toml run "http://$address/openapi.json" --checks all --max-examples 50 --seed 1

# The same, where nobody gets in without a key.
kill $service
wait $service
token=$("$binary" api-key create live-checks --scope users:write --scope metrics:read)
ALLOW_ANONYMOUS=false start_service
"$tools/bin/python" tests/browser/docs.py "http://$address" "${SCREENSHOTS:-}" "$token"
"$tools/bin/schemathesis" --config-file tests/schemathesis.toml run "http://$address/openapi.json" --checks all --max-examples 50 --seed 1 \
  --header "Authorization: Bearer $token"
if grep '"level":"error"' "$log"; then
  echo 'the service logged errors' >&2
  exit 1
fi
