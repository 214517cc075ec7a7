"""Takes the words of microsandbox's `msb` and runs the guest in namespaces instead of a machine: for tests of the driver."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

STAGE = """
set -e
mount --rbind "$ROOT" "$STAGE"
mount -o remount,bind,ro "$STAGE"
mount -t proc proc "$STAGE/proc"
for folder in $FOLDERS; do mount -t tmpfs -o "size=${folder#*:},mode=0755" tmpfs "$STAGE${folder%%:*}"; done
exec chroot "$STAGE" /usr/bin/env -i "$@"
"""


def main() -> None:
    home = Path(os.environ["MSB_HOME"])
    home.mkdir(exist_ok=True)
    with (home / "calls").open("a") as file:
        print(json.dumps(sys.argv[1:]), file=file)
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create")
    for option in ("--name", "--hostname", "--memory", "--cpus", "--pull"):
        create.add_argument(option, required=True)
    create.add_argument("--tmpfs", action="append")
    create.add_argument("--no-net", action="store_true", required=True)
    create.add_argument("image")
    run = verbs.add_parser("exec")
    run.add_argument("--stream", action="store_true", required=True)
    run.add_argument("--user", required=True)
    run.add_argument("--env", action="append")
    run.add_argument("name")
    run.add_argument("command", nargs="+")
    remove = verbs.add_parser("remove")
    remove.add_argument("--force", action="store_true")
    for verb in (remove, verbs.add_parser("pause"), verbs.add_parser("resume")):
        verb.add_argument("name")
    for verb in verbs.choices.values():
        verb.add_argument("--quiet", action="store_true")
    words = parser.parse_args()
    box = home / getattr(words, "name", "")
    if words.verb == "create":
        (box / "stage").mkdir(parents=True)
        (box / "box.json").write_text(json.dumps({"image": words.image, "tmpfs": words.tmpfs}))
    elif not box.is_dir():
        sys.exit(f"error: sandbox {words.name!r} not found")
    elif words.verb == "exec":
        made = json.loads((box / "box.json").read_text())
        (box / "pid").write_text(str(os.getpid()))
        os.environ |= {"ROOT": made["image"], "STAGE": str(box / "stage"), "FOLDERS": " ".join(made["tmpfs"])}
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        apart = [f"--{what}" for what in ("mount", "pid", "net", "ipc", "uts", "fork", "kill-child")]
        unshare = ["unshare", *apart, "--propagation", "private"]
        os.execvp(unshare[0], [*unshare, "sh", "-c", STAGE, "sh", *words.env, *words.command])
    else:
        kind = {"remove": signal.SIGKILL, "pause": signal.SIGSTOP, "resume": signal.SIGCONT}[words.verb]
        os.kill(int((box / "pid").read_text()), kind)


main()
