"""A subscriber that keeps a copy of the users: a queue of its own, each event once, each user's changes in order.

    pip install pika==1.3.2
    subscriber.py AMQP_URL USERS_URL [EVENTS]

USERS_URL is the service's address, such as http://127.0.0.1:8000. If it lets nobody in without an API key, USERS_TOKEN in the
environment is the token of one with the scope users:read. Ends after EVENTS new events, if given. Prints one line
for each change of its copy.
"""

import json
import os
import sys
import urllib.request

import pika

AMQP_URL, USERS_URL = sys.argv[1], sys.argv[2].rstrip("/")
TOKEN = os.environ.get("USERS_TOKEN")
REMAINING = int(sys.argv[3]) if len(sys.argv) > 3 else None

# A real subscriber keeps these two in tables and writes both in one transaction. After a crash between the change and the
# acknowledgement, the event is delivered again, and its version shows that it was applied.
users = {}
versions = {}


def apply(event):
    """Applies an event unless it, or a later one of the same user, was applied before."""
    user_id, version = event["user_id"], event["version"]
    if version <= versions.get(user_id, 0):
        return False  # a repeat, or older than what we know
    versions[user_id] = version
    if event["event_type"] == "user.deleted":
        users.pop(user_id, None)
    else:
        users[user_id] = event["data"]
    print(event["event_type"], user_id, version, event["trace_id"], flush=True)
    return True


def load_what_is_there():
    """Loads all users. The queue must be bound already, so that no change is missed between the list and the first event."""
    last, count = None, 0
    while True:
        # Each page must begin with the last user of the page before. If not, a user was deleted or added meanwhile,
        # and the pages have shifted.
        request = urllib.request.Request(f"{USERS_URL}/users?limit=100&offset={max(count - 1, 0)}")
        if TOKEN:
            request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request) as answer:
            page = json.load(answer)
        if last is not None and (not page or page[0]["id"] != last):
            users.clear()
            versions.clear()
            last, count = None, 0
            continue
        new = page if last is None else page[1:]
        for user in new:
            # With its version, so that events that the list already includes are recognised as old.
            users[user["id"]] = {"name": user["name"], "surname": user["surname"]}
            versions[user["id"]] = user["version"]
        count += len(new)
        if len(page) < 100:
            return
        last = page[-1]["id"]


connection = pika.BlockingConnection(pika.URLParameters(AMQP_URL))
channel = connection.channel()
channel.exchange_declare("user_events", exchange_type="topic", durable=True)
# Durable, so that nothing is missed while this program is down. One active consumer, to keep each user's events in order.
arguments = {"x-queue-type": "quorum", "x-single-active-consumer": True}
channel.queue_declare("example_subscriber", durable=True, arguments=arguments)
channel.queue_bind("example_subscriber", "user_events", "user.*")
channel.basic_qos(prefetch_count=100)
load_what_is_there()
print("ready", len(users), "users", flush=True)

for method, _properties, body in channel.consume("example_subscriber"):
    is_new = apply(json.loads(body))
    channel.basic_ack(method.delivery_tag)
    if is_new and REMAINING is not None:
        REMAINING -= 1
        if REMAINING <= 0:
            break
channel.cancel()
connection.close()
