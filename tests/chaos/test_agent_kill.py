"""SIGKILL of a process that runs agents, wherever it happens to be; another process goes on. On SQLite, and on PostgreSQL
where a server can be started.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mortice.cli import main

TOOLS = Path(__file__).parent.parent / "data" / "agent" / "tools.py"
SCRIPT = {
    "task": "charge",
    "tools": [f"{TOOLS}:charge_keyed", f"{TOOLS}:gate"],
    "policy": {"external": "allow"},
    "turns": [
        *({"call": {"tool": "charge_keyed", "arguments": {"amount": n}}, "delay_s": 0.05} for n in range(6)),
        {"call": {"tool": "gate"}},
        {"say": "charged six times"},
    ],
}
EVENTS_TO_GATE = 1 + 6 * 2 + 1  # "run r", six answers with their observations, the answer that calls the gate


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A server of our own on a free port of this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    folder = found[-1] if found else Path("/nowhere")
    if not (folder / "initdb").exists():
        pytest.skip("no PostgreSQL here; .ci/run installs it")
    place = tmp_path_factory.mktemp("postgres")
    data = place / "data"
    as_user = []
    if os.geteuid() == 0:  # it refuses to run as root
        place.chmod(0o777)
        for parent in place.parents:
            if str(parent).startswith("/tmp/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    subprocess.run(
        [*as_user, folder / "initdb", "-D", data, "-U", "mortice", "--auth=trust", "--no-sync"],
        check=True, capture_output=True, cwd=place,
    )  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={place} -c fsync=off"
    process = subprocess.Popen(
        [*as_user, folder / "postgres", "-D", data, *options.split()],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=place,
    )  # fmt: skip
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    else:
        pytest.fail("PostgreSQL did not come up")
    yield f"postgresql://mortice@127.0.0.1:{port}/postgres"
    process.send_signal(signal.SIGINT)
    process.wait(30)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request, tmp_path):
    """Options that name the store."""
    options = ["--home", str(tmp_path / "agents")]
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
        name = f"db{abs(hash(str(tmp_path))) % 10**9}"
        create = (
            f"import psycopg; psycopg.connect({url!r}, autocommit=True).execute('create database {name}')"
        )
        subprocess.run([sys.executable, "-c", create], check=True)
        options += ["--db", url.replace("/postgres", f"/{name}")]
    return options


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "mortice", "agent", *args]


@pytest.fixture
def here(capsys, monkeypatch):
    """Runs a command in this process; its exit code, and what it said on stderr."""

    def run(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mortice", "agent", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run


def test_killed_anywhere(store, tmp_path):
    """Killed at events it was seen to reach, in the first life and in later ones. Its last call waits at a gate that opens
    after the last kill, so no process can end before its kill.
    """
    seed = int(os.environ.get("MORTICE_SEED", "7"))
    print(f"MORTICE_SEED={seed}")
    chance = random.Random(seed)
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    log, gate = tmp_path / "effects.log", tmp_path / "gate"
    environment = os.environ | {"AGENT_TEST_LOG": str(log), "AGENT_TEST_GATE": str(gate)}
    args = command("run", "--script", str(script), "--id", "r", *store, "--json")
    for _ in range(2):
        killed_after(args, environment, chance.randint(1, EVENTS_TO_GATE), chance.random() * 0.08)
        args = command("resume", "r", *store, "--json")
    gate.touch()
    done = subprocess.run(args, env=environment, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "charged six times"
    lines = [line.split(" ") for line in log.read_text().splitlines()]
    assert [amount for _, amount in lines] == ["0", "1", "2", "3", "4", "5"]
    assert len({key for key, _ in lines}) == 6


def killed_after(args: list[str], environment: dict[str, str], events: int, seconds: float) -> None:
    """Start, wait for so many events on stderr (a replayed one counts too) and a moment more, kill."""
    process = subprocess.Popen(
        args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    said = [process.stderr.readline() for _ in range(events)]
    time.sleep(seconds)
    process.kill()
    assert process.wait() == -signal.SIGKILL, said
    process.stderr.close()
    assert all(said), said


def test_two_processes_do_not_run_one_run(store, tmp_path, here):
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"turns": [{"say": "slow", "delay_s": 3600}]}))
    process = subprocess.Popen(
        command("run", "--script", str(script), "--id", "r", *store), stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr.readline() == "run r\n"
        code, said = here("resume", "r", *store)
        assert code == 1
        assert f"at work in process {process.pid}" in said
        code, said = here("run", "--script", str(script), "--id", "r", *store)
        assert code == 2
        assert "there is a run 'r' already" in said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["resume", "nothing"], "there is no run 'nothing'"),
        (["run", "--script", "/no/such/file"], "No such file"),
        (["run", "--id", "a b", "task"], "id: "),
        (["run", "--tool", "nothing", "task"], "tools: "),
        (["run"], "an agent needs a task"),
        (["run", "x", "--db", "mysql://h/d"], "sqlite:////path or postgresql://"),
        (["run", "x", "--db", "postgresql://127.0.0.1:1/x"], "the database cannot be used"),
    ],
)
def test_mistakes_are_one_line(args, text, tmp_path, here):
    code, said = here(*args, "--home", str(tmp_path))
    assert code == 2
    assert text in said
    assert "Traceback" not in said


def test_postgres_is_installed_by_ci():
    """The set-up of CI brings the server that the tests above want."""
    text = (Path(__file__).parent.parent.parent / ".ci" / "run").read_text()
    assert "postgresql" in text
    assert shutil.which("bash")
