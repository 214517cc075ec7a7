#!/usr/bin/env bash
# kill -9 in the middle of a run; the run goes on with its variables and files, and nothing is done twice.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mortice=${MORTICE:-mortice}
work=$(mktemp -d)
export MORTICE_AGENT_HOME=$work/agents

"$mortice" agent run --script "$here/counting.yaml" --id counting --json 2> "$work/said" &
process=$!
until grep -q '= run_python: \[1, 2\]' "$work/said"; do
  kill -0 $process
  sleep 0.1
done
kill -9 $process
wait $process 2> /dev/null || true
echo "killed process $process after its second turn"

"$mortice" agent resume counting --json
rm -rf "$work"
