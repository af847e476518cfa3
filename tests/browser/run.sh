#!/usr/bin/env bash
# Opens the documentation of the service at BASE_URL in headless Chromium and uses it as a person would.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# npm writes it last: it is missing after an install that was cut short, and old after a change of version.
[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --silent --no-audit --no-fund
CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v google-chrome)} node docs.mjs "${BASE_URL:?the address of a running service}"
