#!/usr/bin/env bash
# Write the locked requirements anew: every version and checksum that a set-up installs,
# for Python 3.11 to 3.13 on any platform. Usage: scripts/lock.sh path/to/uv
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${1:-uv}

compile() {
  local out=$1
  shift
  "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
    --no-annotate "$@" --output-file "requirements/$out"
}

echo "hatchling>=1.27" | compile build.txt -
printf 'pip-audit>=2.9\ncyclonedx-bom>=7\n' | compile audit.txt -
# Whose clients the tests of the Open Inference Protocol call the service with.
printf 'tritonclient[http]==2.73.0\nkserve==0.21.0\n' | compile inference-clients.txt -
# The browser is Debian's: only what drives it, and what looks at the page for what shuts people out.
printf 'playwright>=1.50\naxe-playwright-python>=0.1.4\n' | compile browser.txt -
compile server.txt --extra server pyproject.toml
compile dev.txt --extra server --extra otel --group dev pyproject.toml
