#!/bin/sh
# Makes the virtual environment of foreign clients, .peer/clients, that test_foreign_*.py looks for. uv fetches in
# parallel: seconds, where pip takes minutes.
# usage: tests/protocol/foreign/setup.sh [--load] [python]      --load: the load generator too, which wants torch
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=$(cd "$here/../../.." && pwd)/.peer/clients
load=
if [ "${1:-}" = --load ]; then load=1; shift; fi
test -x "$target/bin/uv" || { "${1:-python3}" -m venv "$target" && "$target/bin/pip" install --quiet --no-cache-dir uv; }
"$target/bin/uv" pip install --quiet --python "$target/bin/python" -r "$here/requirements.txt"
# pip, not uv, for torch: it knows of the machine's own index of CPU builds, where there is one.
if [ -n "$load" ]; then "$target/bin/pip" install --quiet --no-cache-dir -r "$here/requirements-load.txt"; fi
