# shellcheck shell=bash disable=SC2034 # the TEST_… variables are for who sources this
# Starts a throw-away PostgreSQL and RabbitMQ for the script that sources this, and sets the TEST_… variables. The servers stop
# when that script ends.

coproc SERVERS { ./setup.sh test-servers; }
while read -r line <&"${SERVERS[0]}" && [ "$line" != ready ]; do
  declare "${line%%=*}=${line#*=}"
done
[ "${line:-}" = ready ] || {
  echo 'PostgreSQL and RabbitMQ did not start: see above' >&2
  exit 1
}
