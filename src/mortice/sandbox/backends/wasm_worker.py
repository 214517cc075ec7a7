"""Runs one piece of Python in CPython for WASI, and ends. A process of its own: no engine bug goes further.

Standard input: JSON {code, memory_bytes, fuel, cap}. Standard output: JSON {stdout, stderr, trap}. There are no files but
the interpreter's own, no environment, no clock of use, no network: only computation.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import wasmtime

PRELUDE = r"""
import sys as _s
def _run(source):
    import ast
    tree = ast.parse(source, '<cell>')
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    names = {'__name__': '__main__'}
    exec(compile(tree, '<cell>', 'exec'), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), '<cell>', 'eval'), names)
        if value is not None:
            return repr(value)[:65536]
def _main(source, mark):
    import json
    answer = {'value': None, 'error': None}
    try:
        answer['value'] = _run(source)
    except BaseException as error:
        import traceback
        text = ''.join(traceback.format_exception(error)[-8:])[-16384:]
        answer['error'] = {'type': type(error).__name__, 'message': str(error)[:8192], 'traceback': text}
    _s.stdout.flush()
    _s.stderr.write('\n' + mark + json.dumps(answer))
"""


def engine() -> wasmtime.Engine:
    """Fuel bounds the work; the compiled module depends on this configuration."""
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


def compile_module(source: Path, target: Path) -> None:
    """Half a minute, once; loading the result takes ten milliseconds."""
    made = wasmtime.Module.from_file(engine(), str(source)).serialize()
    part = target.with_suffix(".part")
    part.write_bytes(made)
    part.rename(target)


def run(module_path: str, request: dict[str, Any]) -> dict[str, Any]:
    """One run; `trap` names the limit that ended it."""
    at = engine()
    module = wasmtime.Module.deserialize_file(at, module_path)
    linker = wasmtime.Linker(at)
    linker.define_wasi()
    store = wasmtime.Store(at)
    store.set_limits(memory_size=request["memory_bytes"])
    store.set_fuel(request["fuel"])
    program = f"{PRELUDE}\n_main({request['code']!r}, {request['mark']!r})"
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        wasi = wasmtime.WasiConfig()
        wasi.argv = ["python", "-I", "-c", program]
        wasi.stdout_file, wasi.stderr_file = str(out), str(err)
        store.set_wasi(wasi)
        trap = None
        try:
            start = linker.instantiate(store, module).exports(store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
        except wasmtime.ExitTrap as ended:
            trap = None if ended.code == 0 else f"exit {ended.code}"
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            trap = "fuel" if store.get_fuel() == 0 else str(error)[:500]
        cap = request["cap"]
        return {
            "stdout": _head(out, cap),
            "stderr": _tail(err, cap),
            "stdout_bytes": out.stat().st_size if out.exists() else 0,
            "trap": trap,
        }


def _head(path: Path, cap: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return file.read(cap).decode("utf-8", "replace")


def _tail(path: Path, cap: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - cap - 131072))
        return file.read().decode("utf-8", "replace")


if __name__ == "__main__":
    import resource

    limit = int(sys.argv[2])  # of what it may write to its two files
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    print(json.dumps(run(sys.argv[1], json.load(sys.stdin))))
