#!/usr/bin/env bash
# Opens the documentation of the service at BASE_URL in headless Chromium and uses it as a person would.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ -d node_modules ] || npm ci --silent --no-audit --no-fund
CHROMIUM=${CHROMIUM:-$(command -v chromium)} node docs.mjs "${BASE_URL:?the address of a running service}"
