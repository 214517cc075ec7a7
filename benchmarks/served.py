"""One server process at a time: started, waited for, watched, and ended with all its children, by process id."""

import json
import os
import platform
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

MIB = 1 << 20


class StartFailed(Exception):
    """The server did not come up; the message is the last thing it said."""


class Served:
    """A server on a free loopback port, for the length of a `with` block.

    `command` may hold "{port}". Entering returns once a one-token completion was answered, and `start_s` is
    how long that took from the start of the process. Leaving ends the whole process tree.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        model: str,
        log: Path,
        environment: dict[str, str] | None = None,
        timeout_s: float = 420.0,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [part.replace("{port}", str(self.port)) for part in command]
        self.model = model
        self.log = log
        self.start_s = 0.0
        self._environment = os.environ | (environment or {})
        self._timeout_s = timeout_s

    def __enter__(self) -> "Served":
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        self._root = psutil.Process(self._process.pid)
        try:
            while not self._answers():
                if self._process.poll() is not None:
                    raise StartFailed(f"ended with code {self._process.returncode}: {self._last_words()}")
                if time.perf_counter() - began > self._timeout_s:
                    raise StartFailed(f"no answer within {self._timeout_s:g} s: {self._last_words()}")
                time.sleep(0.1)
        except BaseException:
            self._end()
            raise
        self.start_s = time.perf_counter() - began
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def alive(self) -> bool:
        return self._process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """The server and its descendants, as far as they live."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """CPU seconds so far of the processes that live."""
        total = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def _answers(self) -> bool:
        body = {"model": self.model, "prompt": "Here we are", "max_tokens": 1, "temperature": 0.0}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            if error.code in (400, 401, 404, 422):  # it is up, and will not take what we send
                raise StartFailed(
                    f"status {error.code}: {error.read(300).decode('utf-8', 'replace')}"
                ) from error
            return False  # 503 while it loads
        except OSError:
            return False
        return True

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"

    def _end(self) -> None:
        processes = self.tree()  # before the root is gone: orphans are nobody's children
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs(processes, timeout=5)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)


class MemoryWatch:
    """Peak memory of a server's processes together, looked at every `every_s` for the length of a `with` block.

    `rss_mib` adds up resident sets and so counts shared pages once a process; `pss_mib` shares them out, which
    is what the server costs the machine.
    """

    def __init__(self, served: Served, every_s: float = 2.0) -> None:
        self.rss_mib = self.pss_mib = 0.0
        self.num_processes = 0
        self._served = served
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        found = [memory_of(process.pid) for process in self._served.tree()]
        found = [memory for memory in found if memory]
        self.num_processes = max(self.num_processes, len(found))
        self.rss_mib = max(self.rss_mib, sum(memory["Rss"] for memory in found))
        self.pss_mib = max(self.pss_mib, sum(memory["Pss"] for memory in found))


class MachineUse:
    """Cores kept busy during a `with` block: by the server, by this process, and by everybody else.

    The last is what tells a quiet machine from a shared one; a load average is too slow to.
    """

    def __init__(self, served: Served) -> None:
        self._served = served

    def __enter__(self) -> "MachineUse":
        self._before = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._after = self._now()

    def figures(self) -> dict[str, float]:
        seconds, machine, server, client = (
            after - before for after, before in zip(self._after, self._before, strict=True)
        )
        others = max(0.0, machine - server - client)
        return {"server_cores": server / seconds, "others_cores": others / seconds}

    def _now(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times()
        machine = times.user + times.nice + times.system + times.irq + times.softirq
        return time.perf_counter(), machine, self._served.cpu_s(), time.process_time()


def memory_of(pid: int) -> dict[str, float]:
    """MiB by kind (Rss, Pss, Pss_Anon, Pss_File, Pss_Shmem, ...); empty if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 / MIB for words in fields}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
