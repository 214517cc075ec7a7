"""Names and paths into specs. A name is looked up among the shipped files; a path is a file of the same form."""

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from mortice.specs.errors import NotFound, RequestError
from mortice.specs.hardware import HardwareSpec, RackSpec
from mortice.specs.hardware_file import read_hardware, read_rack
from mortice.specs.shape import ModelShape
from mortice.specs.shape_config import read_shape

HERE = Path(__file__).parent
MAX_BYTES = 8 << 20  # of a user's file


def hardware_names() -> list[str]:
    return sorted(path.stem for path in (HERE / "hardware").glob("*.yaml"))


def rack_names() -> list[str]:
    return sorted(path.stem for path in (HERE / "racks").glob("*.yaml"))


def model_names() -> list[str]:
    return sorted(path.stem for path in (HERE / "models").glob("*.json"))


def load_hardware(name: str) -> HardwareSpec:
    """A catalogue entry by name, or a YAML file by path. A file may start from an entry: `base: h800`.

    Raises RequestError (NotFound for an unknown name) with one line that names the field.
    """
    if name in hardware_names():
        return _shipped(name)
    values = _yaml(_user_file(name, "hardware", hardware_names()))
    base = values.pop("base", None)
    if base is not None:
        if base not in hardware_names():
            raise _unknown(str(base), "base", hardware_names())
        values = _yaml(HERE / "hardware" / f"{base}.yaml") | values
    return read_hardware(values)


def load_rack(name: str) -> RackSpec:
    """A supernode by name, or a YAML file by path."""
    path = HERE / "racks" / f"{name}.yaml"
    if name not in rack_names():
        path = _user_file(name, "rack", rack_names())
    return read_rack(_yaml(path), {each: _shipped(each) for each in hardware_names()})


def load_model(name: str) -> ModelShape:
    """A model's shape by catalogue name, or by path of a `config.json` or of the folder that holds one."""
    if name in model_names():
        path, title = HERE / "models" / f"{name}.json", name
    else:
        path = _user_file(name, "model", model_names(), folder_file="config.json")
        title = path.parent.name if path.name == "config.json" else path.stem
    try:
        values = msgspec.json.decode(_read(path))
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{path}: not JSON: {error}", param="model") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path}: a config is a JSON object", param="model")
    try:
        return read_shape(values, title or "model")
    except RequestError as error:
        raise RequestError(f"{path}: {error.message.removeprefix('config: ')}", param=error.param) from error


@cache
def published_tables(name: str) -> dict[str, Any]:
    """Cells that a paper printed, with their source: the reference that the published convention is held to."""
    path = HERE / "published" / f"{name}.json"
    known = sorted(each.stem for each in (HERE / "published").glob("*.json"))
    if name not in known:
        raise _unknown(name, "published tables", known)
    tables: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    return tables


@cache
def _shipped(name: str) -> HardwareSpec:
    return read_hardware(_yaml(HERE / "hardware" / f"{name}.yaml"))


def _user_file(name: str, kind: str, known: list[str], folder_file: str = "") -> Path:
    path = Path(name).expanduser()
    if folder_file and path.is_dir():
        path = path / folder_file
        if not path.is_file():
            raise NotFound(f"{kind}: there is no {folder_file} in {name}", param=kind)
    if not path.is_file():
        raise _unknown(name, kind, known)
    return path


def _unknown(name: str, kind: str, known: list[str]) -> NotFound:
    close = get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"known are {', '.join(known)}, or a file's path"
    return NotFound(f"{kind} {name!r} is not known; {hint}", param=kind)


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(f"{path} is larger than {MAX_BYTES >> 20} MiB", param=str(path))
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param=str(path)) from error


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(_read(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise RequestError(f"{path}: not YAML: {line}", param=str(path)) from error
    if not isinstance(values, dict):
        raise RequestError(f"{path}: a file of fields (name: value) is expected", param=str(path))
    return values
