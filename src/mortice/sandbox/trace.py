"""Spans of what a sandbox is asked, where OpenTelemetry is installed and told to send them; else they cost nothing.

Telemetry may lose what it is given; the log of record is `mortice.obs.audit`. Code, arguments and output are left out.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mortice.sandbox.contract import BoxInfo, RunResult
from mortice.specs.errors import MorticeError

Ended = Callable[[RunResult], None]


def span(verb: str, box: BoxInfo, **attributes: Any) -> AbstractContextManager[Ended]:
    """`with span("cell", box.info, cell=...) as ended: ...; ended(result)`: a span `sandbox.cell` under the current one."""
    otel = _api()
    return nullcontext(_unheard) if otel is None else _recorded(otel, verb, box, attributes)


@cache
def _api() -> Any:
    """OpenTelemetry's API, or None where the extra that brings it is not installed."""
    return import_module("opentelemetry.trace") if find_spec("opentelemetry") else None


def _unheard(_: RunResult) -> None:
    return None


@contextmanager
def _recorded(otel: Any, verb: str, box: BoxInfo, attributes: dict[str, Any]) -> Iterator[Ended]:
    named = {
        "mortice.sandbox.box": box.id,
        "mortice.sandbox.backend": box.backend,
        "mortice.sandbox.strength": str(box.strength),
        "mortice.sandbox.generation": box.generation,
    } | {f"mortice.sandbox.{key}": value for key, value in attributes.items() if value is not None}
    tracer = otel.get_tracer("mortice.sandbox")
    with tracer.start_as_current_span(f"sandbox.{verb}", attributes=named, record_exception=False) as current:

        def ended(result: RunResult) -> None:
            current.set_attribute("mortice.sandbox.replayed", result.replayed)
            current.set_attribute("mortice.sandbox.cpu_s", result.cpu_s)
            if result.exit_code is not None:
                current.set_attribute("process.exit.code", result.exit_code)
            if not result.ok:
                kind = (
                    result.failure.reason if result.failure else result.error.type if result.error else "exit"
                )
                current.set_attribute("error.type", kind)
                current.set_status(otel.StatusCode.ERROR)

        try:
            yield ended
        except MorticeError as error:
            current.set_attribute("error.type", error.code or error.kind)
            raise
