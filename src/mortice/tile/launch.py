"""The short way from a call to the machine.

A call like one before, in types, shapes and strides, needs no binding and no checks again, only addresses. For each form
of call (which arguments are tensors of which library, whether `out` is given) a launcher is written as Python text: one
tuple of what the launch hangs on, one look-up, one call of the compiled function.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mortice.tile.dtypes import boolean
from mortice.tile.host import Bound
from mortice.tile.ir import expr as e
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk

LIMIT = 4096  # launches remembered by a form; then all are forgotten
LONG = object()  # what a launcher answers when the call must go the long way
# Of a tensor: what a launch hangs on, and its address.
SIGHT = {
    "torch": (
        "{x}.dtype, {x}.shape, {x}.is_contiguous() or {x}.stride(), {x}.get_device()",
        "{x}.data_ptr()",
    ),
    "numpy": ("{x}.dtype, {x}.shape, {x}.strides, {x}.flags.writeable", '{x}.__array_interface__["data"][0]'),
}


@dataclass(frozen=True, slots=True)
class Shortcut:
    """What an executable offers for one set of types and shapes: `entry(*addresses and scalars, dimensions, now())`
    answers 0, or what `otherwise` turns into LONG or an exception. now: the threads to use, or the stream."""

    entry: Callable[..., Any]
    dimensions: Any
    now: Callable[[], int]
    otherwise: Callable[[Any], Any]


class Launches:
    """tensors: positions of the tensor arguments; optional: of those that may be None."""

    def __init__(self, tensors: tuple[int, ...], optional: tuple[int, ...]) -> None:
        self.tensors, self.optional = tensors, optional
        self.last: Callable[..., Any] = _nothing
        self.forms: dict[Any, Callable[..., Any]] = {}
        self.tables: dict[Any, dict[Any, Any]] = {}
        self.deciding: dict[Any, set[int]] = {}  # positions of scalars whose values a launch hangs on

    def other(self, args: tuple[Any, ...], out: Any, constants: dict[str, Any]) -> Any:
        """The results, or LONG, of a call that `last` does not take."""
        launcher = self.forms.get(self._form(args, out, constants), _nothing)
        result = launcher(args, out, constants)
        if result is not LONG:
            self.last = launcher
        return result

    def learn(
        self,
        args: tuple[Any, ...],
        out: Any,
        constants: dict[str, Any],
        function: s.Function,
        executable: Any,
        bound: Bound,
        made: list[Any],
    ) -> None:
        """Remembers a call that went the long way, if the next one of its kind may go the short one."""
        scalars = [param.var for param in function.params if isinstance(param, s.Scalar)]
        given = [x for x in args if type(x) in (int, float, bool)]
        fitting = len(scalars) == len(given) and all(
            (type(x) is bool) == (var.dtype == boolean)
            and (type(x) is int or type(x) is bool or var.dtype.is_float)
            for x, var in zip(given, scalars, strict=True)
        )
        library = _library([*(args[i] for i in self.tensors if args[i] is not None), *made])
        places = [i for i, x in enumerate(args) if type(x) in (int, float, bool)]
        deciding = {i for i, var in zip(places, scalars, strict=False) if _decides(function, var)}
        if library is None or not fitting or any(type(args[i]) is float for i in deciding):
            return
        form = self._form(args, out, constants)
        if form not in self.forms:
            self.tables[form], self.deciding[form] = {}, deciding
            self.forms[form] = self._write(
                args, out, constants, len(made), library, self.tables[form], deciding
            )
        if deciding - self.deciding[form]:
            return
        table = self.tables[form]
        if len(table) >= LIMIT:
            table.clear()
        key = self.forms[form].__dict__["key"](args, out, constants)
        short: Shortcut = executable.shortcut(bound)
        entry = (short.entry, short.dimensions, short.now, short.otherwise)
        table[key] = (*entry, *(_maker(x) for x in made)) if out is None else entry

    def _form(self, args: tuple[Any, ...], out: Any, constants: dict[str, Any]) -> Any:
        absent = tuple([i < len(args) and args[i] is None for i in self.optional])
        kinds = {type(args[i]) for i in self.tensors if i < len(args) and args[i] is not None}
        return (len(args), absent, *kinds, type(out), *constants)

    def _write(
        self,
        args: tuple[Any, ...],
        out: Any,
        constants: dict[str, Any],
        results: int,
        library: str,
        table: Any,
        deciding: set[int],
    ) -> Callable[..., Any]:
        sight, address = SIGHT[library]
        names = [f"a{i}" for i in range(len(args))]
        present = [names[i] for i in self.tensors if args[i] is not None]
        outs = [f"o{i}" for i in range(results)]
        whole = present if out is None else present + outs
        key = "".join(sight.format(x=x) + ", " for x in whole)
        scalars = [i for i, x in enumerate(args) if type(x) in (int, float, bool)]
        key += "".join(f"type(a{i}), " + f"a{i}, " * (i in deciding) for i in scalars)
        values = [
            address.format(x=x) if x in present else x
            for x, v in zip(names, args, strict=True)
            if v is not None
        ]
        values += [address.format(x=x) for x in outs]
        unpack = f"    {', '.join(names)}{',' * (len(names) == 1)} = args\n" if names else ""
        if out is not None and outs:
            unpack += f"    {', '.join(outs)} = out\n" if type(out) in (tuple, list) else "    o0 = out\n"
        makers = "".join(f", make_{x}" for x in outs) if out is None else ""
        make = "".join(f"    {x} = make_{x}()\n" for x in outs) if out is None else ""
        answer = ("o0" if results == 1 else f"({', '.join(outs)})") if outs else "None"
        wrong = [f"len(args) != {len(args)}", *([] if constants else ["constants"])]
        wrong += ["out is not None" if out is None else "type(out) is not Out"]
        wrong += [f"len(out) != {results}"] if type(out) in (tuple, list) else []
        differs = [f"type({x}) is not Tensor" for x in whole]
        differs += [f"{x} is not None" for x, v in zip(names, args, strict=True) if v is None]
        constant = "*constants.items()" if constants else ""
        text = (
            f"def key(args, out, constants):\n{unpack}    return ({key}{constant})\n"
            f"def launcher(args, out, constants):\n    if {' or '.join(wrong)}: return LONG\n{unpack}"
            f"    if {' or '.join(differs) or 'False'}: return LONG\n"
            f"    known = table.get(({key}{constant}))\n"
            f"    if known is None: return LONG\n"
            f"    entry, dimensions, now, otherwise{makers} = known\n{make}"
            f"    code = entry({', '.join(values)}{', ' * bool(values)}dimensions, now())\n"
            f"    if code: return otherwise(code)\n"
            f"    return {answer}\n"
        )
        tensor = np.ndarray if library == "numpy" else sys.modules["torch"].Tensor
        scope = {"Tensor": tensor, "LONG": LONG, "table": table, "Out": type(out)}
        exec(compile(text, "<launcher>", "exec"), scope)
        launcher: Any = scope["launcher"]
        launcher.key = scope["key"]
        return launcher  # type: ignore[no-any-return]


def _nothing(args: tuple[Any, ...], out: Any, constants: dict[str, Any]) -> Any:
    return LONG


def _library(tensors: list[Any]) -> str | None:
    kinds = {type(x) for x in tensors}
    if kinds == {np.ndarray}:
        return "numpy"
    return "torch" if "torch" in sys.modules and kinds == {sys.modules["torch"].Tensor} else None


def _maker(like: Any) -> Callable[[], Any]:
    shape, dtype = tuple(like.shape), like.dtype
    if isinstance(like, np.ndarray):
        return lambda: np.empty(shape, dtype)
    # A third of the time of torch.empty, which looks for names of dimensions and memory formats first.
    new, strides, device = sys.modules["torch"].empty_strided, like.stride(), like.device
    return lambda: new(shape, strides, dtype=dtype, device=device)


def _decides(function: s.Function, var: e.Var) -> bool:
    """Does a scalar decide about a shape, or stand in a fact that calls check?"""
    nodes: list[Any] = [x for x in function.body if not isinstance(x, s.Launch | s.Parallel)]
    nodes += [extent for tensor in function.tensors for extent in tensor.buffer.shape]
    return any(isinstance(node, e.Var) and node.name == var.name for root in nodes for node in walk(root))
