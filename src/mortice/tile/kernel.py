"""`tile.kernel`: what a decorated function becomes. A call finds or makes the specialisation for its arguments and runs
it on the target they live on."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, overload

from mortice.tile import arguments as tensors
from mortice.tile.arguments import Argument
from mortice.tile.diagnostics import NOWHERE, ArgumentError, Span
from mortice.tile.dtypes import DType, boolean, f32, index
from mortice.tile.frontend import Built, build
from mortice.tile.host import Bound, bind, result_shape
from mortice.tile.ir.printer import text
from mortice.tile.ir.stmt import Function
from mortice.tile.language import Tensor
from mortice.tile.launch import LONG, Launches
from mortice.tile.signature import ArgumentType, ScalarType, Signature, TensorType
from mortice.tile.targets import Executable, emitted, prepare

SCALARS: dict[type, DType] = {int: index, float: f32, bool: boolean}


@overload
def kernel(function: Callable[..., Any]) -> "Kernel": ...


@overload
def kernel(
    function: None = None,
    *,
    cpu: dict[str, Any] | None = None,
    choices: Mapping[str, Sequence[Any]] | None = None,
) -> Callable[[Callable[..., Any]], "Kernel"]: ...


def kernel(
    function: Callable[..., Any] | None = None,
    *,
    cpu: dict[str, Any] | None = None,
    choices: Mapping[str, Sequence[Any]] | None = None,
) -> Any:
    """Makes a kernel of a function. Positional parameters are its data: tensors (annotated `tile.Tensor`, perhaps
    `| None`) and run-time scalars (`int`, `float`, `bool`). Keyword-only ones are constants, for each set of which
    the kernel is specialised; their defaults are a GPU's schedule. cpu: other defaults of some, for the CPU.
    choices: values that tuning tries for some, all combinations."""
    if function is None:
        return lambda function: Kernel(function, cpu=cpu or {}, choices=choices or {})
    return Kernel(function, cpu=cpu or {}, choices=choices or {})


Replay = Callable[[str, str, dict[str, Argument]], dict[str, Any] | None]  # of kernel, target and arguments


@dataclass(frozen=True)
class Parameter:
    name: str
    scalar: DType | None  # None: a tensor
    optional: bool


@dataclass
class Specialisation:
    """One compiled form. static: dimensions it holds for."""

    built: Built
    executable: Executable


@dataclass
class Kernel:
    """Call it with torch tensors or NumPy arrays; they are not copied. Tensors made by `tile.empty` and returned are
    made here, or given as `out=`.

    Raises ArgumentError before anything runs, TileError if the kernel is wrong or cannot be compiled.
    """

    function: Callable[..., Any]
    target: str | None = None  # None: where the tensors are
    cpu: dict[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    replay: Replay | None = None
    _specialised: dict[Any, list[Specialisation]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.__name__ = self.function.__name__
        self.__doc__ = self.function.__doc__
        self.signature = inspect.signature(self.function)
        hints = typing.get_type_hints(self.function)
        self.parameters: list[Parameter] = []
        self.constants: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                self.constants[name] = parameter.default
            else:
                self.parameters.append(self._parameter(name, hints.get(name, Tensor)))
        if unknown := (self.cpu.keys() | self.choices.keys()) - self.constants.keys():
            problem = f"cpu or choices name {', '.join(sorted(unknown))}"
            raise ArgumentError(self.span, self.__name__, problem, "name keyword-only parameters")
        tensors = [i for i, parameter in enumerate(self.parameters) if parameter.scalar is None]
        self._launches = Launches(tuple(tensors), tuple(i for i in tensors if self.parameters[i].optional))

    def __call__(self, *args: Any, out: Any = None, **keywords: Any) -> Any:
        result = self._launches.last(args, out, keywords)
        return result if result is not LONG else self._long(args, out, keywords)

    def _long(self, args: tuple[Any, ...], out: Any, keywords: dict[str, Any]) -> Any:
        """A call that is not like one before."""
        short = self.constants.keys() >= keywords.keys()
        if short and (result := self._launches.other(args, out, keywords)) is not LONG:
            return result
        given = self._bind(args, keywords)
        views, scalars = self._look(given)
        constants = self._constants(given, keywords, views)
        found = self._specialise(views, constants)
        made, bound = self._run(found, views, scalars, given, out)
        if short and hasattr(found.executable, "shortcut") and len(args) == len(self.parameters):
            self._launches.learn(args, out, keywords, found.built.function, found.executable, bound, made)
        return tuple(made) if len(made) > 1 else made[0] if made else None

    def on(self, target: str) -> "Kernel":
        """The same kernel on a target of your choice: "c", "interpreter"."""
        return Kernel(self.function, target, self.cpu, self.choices, self.replay)

    def replaying(self, replay: Replay) -> "Kernel":
        """The same kernel, with constants that `replay` names for a call's target and arguments in place of the defaults;
        `tune.Schedules` reads them from a file."""
        return Kernel(self.function, self.target, self.cpu, self.choices, replay)

    def views(self, *args: Any, **keywords: Any) -> tuple[dict[str, Argument], dict[str, Any]]:
        """The tensors and the scalars of a call, by name."""
        return self._look(self._bind(args, keywords))

    def defaults(self, *args: Any) -> dict[str, Any]:
        """The constants a call with these arguments takes."""
        given = self._bind(args, {})
        return dict(self._constants(given, {}, self._look(given)[0]))

    def ir(self, *args: Any, **keywords: Any) -> str:
        """Text of the tile IR for these arguments."""
        return text(self.lowered(*args, **keywords))

    def lowered(self, *args: Any, **keywords: Any) -> Function:
        """The tile IR for these arguments, before any pass."""
        given = self._bind(args, keywords)
        views, _ = self._look(given)
        constants = self._constants(given, keywords, views)
        return build(self.function, self._signature(self.target, views, constants)).function

    def compiled(self, *args: Any, **keywords: Any) -> Executable:
        """What a call with these arguments would run, without running it; `source` is its text."""
        given = self._bind(args, keywords)
        views, _ = self._look(given)
        constants = self._constants(given, keywords, views)
        return self._specialise(views, constants).executable

    def source(self, *args: Any, **keywords: Any) -> str:
        """The text of what a call with these arguments would run; nothing is compiled."""
        target = self.target or self._home(self._look(self._bind(args, keywords))[0])
        return emitted(self.lowered(*args, **keywords), target)

    @property
    def span(self) -> Span:
        code = self.function.__code__
        return Span(code.co_filename, code.co_firstlineno) if code else NOWHERE

    def _parameter(self, name: str, hint: Any) -> Parameter:
        optional = False
        if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union:
            parts = [part for part in typing.get_args(hint) if part is not type(None)]
            optional, hint = len(parts) < len(typing.get_args(hint)), parts[0]
        if hint in SCALARS:
            return Parameter(name, SCALARS[hint], optional)
        if hint is Tensor:
            return Parameter(name, None, optional)
        problem = f"parameter {name} is annotated {getattr(hint, '__name__', hint)}"
        raise ArgumentError(
            self.span, self.__name__, problem, "it is tile.Tensor, int, float or bool, or keyword-only"
        )

    def _bind(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
        try:
            bound = self.signature.bind(*args, **keywords)
        except TypeError as error:
            raise ArgumentError(
                self.span, self.__name__, str(error), f"its form is {self.__name__}{self.signature}"
            ) from None
        bound.apply_defaults()
        return bound.arguments

    def _constants(
        self, given: dict[str, Any], keywords: dict[str, Any], views: dict[str, Argument]
    ) -> tuple[tuple[str, Any], ...]:
        """Given by the call, else the CPU's own, else the defaults."""
        target = self.target or self._home(views)
        own = self.cpu if target == "c" else {}
        if self.replay is not None:
            own = own | (self.replay(self.__name__, target, views) or {})
        return tuple(
            (name, given[name] if name in keywords else own.get(name, given[name])) for name in self.constants
        )

    def _look(self, given: dict[str, Any]) -> tuple[dict[str, Argument], dict[str, Any]]:
        views: dict[str, Argument] = {}
        scalars: dict[str, Any] = {}
        for parameter in self.parameters:
            value = given[parameter.name]
            if value is None and parameter.optional:
                continue
            elif parameter.scalar is not None:
                if isinstance(value, str) or not hasattr(value, "__float__"):
                    self._refuse(
                        parameter.name, f"is a {type(value).__name__}", f"pass a {parameter.scalar} number"
                    )
                scalars[parameter.name] = float(value) if parameter.scalar.is_float else int(value)
            else:
                try:
                    view = tensors.view(value)
                except TypeError as error:
                    self._refuse(parameter.name, str(error), "pass a torch tensor or a NumPy array")
                views[parameter.name] = view
        return views, scalars

    def _refuse(self, name: str, problem: str, remedy: str) -> typing.NoReturn:
        raise ArgumentError(self.span, self.__name__, f"argument {name}: {problem}", remedy)

    def _home(self, views: dict[str, Argument]) -> str:
        devices = {view.device for view in views.values()}
        if len(devices) > 1:
            places = ", ".join(f"{name} on {view.device}" for name, view in views.items())
            raise ArgumentError(
                self.span, self.__name__, f"the tensors lie apart: {places}", "move them together"
            )
        return {"cpu": "c"}.get(device := next(iter(devices), "cpu"), device)

    def _specialise(
        self, views: dict[str, Argument], constants: tuple[tuple[str, Any], ...]
    ) -> Specialisation:
        """The compiled form for these arguments, made if it is not there."""
        target = self.target or self._home(views)
        signature = self._signature(target, views, constants)
        known = self._specialised.setdefault((target, signature.arguments, constants), [])
        for one in known:
            if all(views[name].shape[axis] == value for (name, axis), value in one.built.static.items()):
                return one
        built = build(self.function, signature)
        known.append(Specialisation(built, prepare(built.function, target)))
        return known[-1]

    def _signature(
        self, target: str | None, views: dict[str, Argument], constants: tuple[tuple[str, Any], ...]
    ) -> Signature:
        kinds: list[tuple[str, ArgumentType]] = []
        for parameter in self.parameters:
            kind: TensorType | ScalarType | None = None
            if parameter.name in views:
                kind = views[parameter.name].type(look_at_alignment=target not in (None, "c", "interpreter"))
            elif parameter.scalar is not None:
                kind = ScalarType(parameter.scalar)
            kinds.append((parameter.name, kind))
        shapes = tuple((name, view.shape) for name, view in views.items())
        return Signature(tuple(kinds), constants, shapes)

    def _run(
        self,
        found: Specialisation,
        views: dict[str, Argument],
        scalars: dict[str, Any],
        given: dict[str, Any],
        out: Any,
    ) -> tuple[list[Any], Bound]:
        """The results, and what the kernel ran with."""
        function = found.built.function
        made: list[Any] = []
        results = [param for param in function.tensors if param.result]
        if results:
            bound = bind(function, views, scalars)
            made = self._results(results, bound, given, out)
            views = views | {p.buffer.name: tensors.view(x) for p, x in zip(results, made, strict=True)}
        elif out is not None:
            raise ArgumentError(
                self.span, self.__name__, "out is given, and the kernel returns nothing", "leave it out"
            )
        for param in function.tensors:
            argument = views[param.buffer.name]
            if param.result and argument.dtype != param.buffer.dtype:
                self._refuse("out", f"is {argument.dtype}, the result {param.buffer.dtype}", "pass that type")
            if param.written and not argument.writable:
                self._refuse(
                    param.buffer.name, "is read-only, and the kernel writes it", "pass a writable array"
                )
        bound = bind(function, views, scalars)
        found.executable(bound)
        return made, bound

    def _results(self, results: list[Any], bound: Bound, given: dict[str, Any], out: Any) -> list[Any]:
        if out is not None:
            outs = list(out) if isinstance(out, tuple | list) else [out]
            if len(outs) != len(results):
                self._refuse("out", f"holds {len(outs)} tensors for {len(results)} results", "pass one each")
            for param, tensor in zip(results, outs, strict=True):
                view = tensors.view(tensor)
                if not tensors.is_contiguous(view.shape, view.strides):
                    self._refuse("out", f"{param.buffer.name} is not contiguous", "pass a contiguous tensor")
            return outs
        like = next(given[p.name] for p in self.parameters if p.scalar is None and given[p.name] is not None)
        try:
            return [tensors.make(result_shape(p, bound.dims), p.buffer.dtype, like) for p in results]
        except TypeError as error:
            self._refuse("out", str(error), "pass out=, or torch tensors")
