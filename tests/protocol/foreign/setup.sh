#!/bin/sh
# Makes the virtual environment of foreign clients, .peer/clients, that test_foreign_*.py looks for.
# usage: tests/protocol/foreign/setup.sh [python]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../../.." && pwd)/.peer/clients
"${1:-python3}" -m venv "$target"
"$target/bin/pip" install --quiet --no-cache-dir -r "$here/requirements.txt"
"$target/bin/pip" list
