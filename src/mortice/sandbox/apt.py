"""Packages of Debian, fetched with lists and cache of our own: nothing is installed, the machine's apt is left alone."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mortice.sandbox.contract import SandboxError

RELEASE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Apt:
    """apt-get with sources, lists and cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._updated = False
        for sub in ("lists/partial", "cache/archives/partial", "parts"):
            (folder / sub).mkdir(parents=True)
        (folder / "status").touch()
        self.mirror = self._mirror()
        source = f"deb [signed-by={KEYRING}] {self.mirror} {RELEASE} main\n"
        (folder / "sources.list").write_text(source)
        self.options = [
            f"-oDir::Etc::sourcelist={folder}/sources.list",
            f"-oDir::Etc::sourceparts={folder}/parts",
            f"-oDir::State::lists={folder}/lists",
            f"-oDir::Cache={folder}/cache",
            "-oAPT::Sandbox::User=root",
            "-oAcquire::Retries=3",
        ]

    def _mirror(self) -> str:
        """The mirror that this machine already uses for Debian."""
        found = _output(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
        )
        mirror = found.split("\n")[0].strip()
        if not mirror:
            raise SandboxError("apt has no list of Debian packages: run apt-get update and try again")
        return mirror

    def download(self, *packages: str) -> list[Path]:
        """The .deb files of exactly these packages."""
        self._update()
        target = Path(tempfile.mkdtemp(dir=self.folder))
        run(["apt-get", *self.options, "-qq", "download", *packages], cwd=target)
        return sorted(target.glob("*.deb"))

    def download_closure(self, *packages: str) -> list[Path]:
        """The .deb files of these packages and all they depend on, as if nothing were installed."""
        self._update()
        run(
            ["apt-get", *self.options, f"-oDir::State::status={self.folder}/status", "-qq", "-y",
             "--no-install-recommends", "--download-only", "install", *packages]
        )  # fmt: skip
        return sorted((self.folder / "cache" / "archives").glob("*.deb"))

    def dependencies(self, package: str) -> list[str]:
        """What a package depends on, by name."""
        self._update()
        lines = _output(["apt-cache", *self.options, "depends", package]).splitlines()
        return [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]

    def _update(self) -> None:
        if not self._updated:
            run(["apt-get", *self.options, "-qq", "update"])
            self._updated = True


@contextmanager
def own_apt() -> Iterator[Apt]:
    """An `Apt` whose folders are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mortice-apt-") as folder:
        yield Apt(Path(folder))


def run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=900
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-800:]
        raise SandboxError(f"{Path(command[0]).name} ended with {done.returncode}: {said}")


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
