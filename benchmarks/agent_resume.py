"""From SIGKILL to going on: `mortice agent resume` of a run with a sandbox, killed in its third turn.

Times are from the start of the resuming process to the first step it does that the killed one had not, as the journal
has them; `--both` ends the sandbox too, so that it has to be restored from its snapshot.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MORTICE = [sys.executable, "-m", "mortice"]
CELL = "seen = globals().get('seen', []) + [len(globals().get('seen', []))]; print(seen)"
TURNS = [{"call": {"tool": "run_python", "arguments": {"code": CELL}}} for _ in range(2)]
SLOW = {"call": {"tool": "run_python", "arguments": {"code": f"import time; time.sleep(1.0); {CELL}"}}}
SCRIPT = {"tools": ["sandbox"], "turns": [*TURNS, SLOW, {"say": "done", "expect": "[0, 1, 2]"}]}


def once(both: bool) -> tuple[float, float]:
    """Seconds until the run went on, and of CPU that the resuming process took from its start to its end."""
    folder = Path(tempfile.mkdtemp(prefix="agent-resume-"))
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    environment = os.environ | {"MORTICE_AGENT_HOME": str(folder / "agents")}
    process = subprocess.Popen(
        [*MORTICE, "agent", "run", "--script", str(script), "--id", "r"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for line in process.stderr:
        if "[0, 1]" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    if both:
        listed = subprocess.run(
            [*MORTICE, "sandbox", "ls", "--json"], capture_output=True, text=True, check=True
        )
        box = next(box["id"] for box in json.loads(listed.stdout) if box["name"] == "agent-r")
        found = subprocess.run(["pgrep", "-f", f"runsc.*{box}"], capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
    started, before = time.time(), cpu_of_children()
    done = subprocess.run(
        [*MORTICE, "agent", "resume", "r", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    cpu_s = cpu_of_children() - before
    if json.loads(done.stdout)["output"] != "done":
        raise SystemExit(done.stdout)
    shown = subprocess.run(
        [*MORTICE, "agent", "show", "r", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    third = json.loads(shown.stdout)["turns"][2]["calls"][0]
    return third["started_s"] - started, cpu_s


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--both", action="store_true", help="end the sandbox too")
    options = parser.parse_args()
    measured = [once(options.both) for _ in range(options.times)]
    seconds = sorted(wall for wall, _ in measured)
    report = {
        "killed": "process and sandbox" if options.both else "process",
        "times": options.times,
        "min_s": round(seconds[0], 2),
        "median_s": round(statistics.median(seconds), 2),
        "max_s": round(seconds[-1], 2),
        "median_cpu_s": round(statistics.median(cpu for _, cpu in measured), 2),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
