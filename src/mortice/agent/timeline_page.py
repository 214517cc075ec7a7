"""The timeline of a run as one HTML page: no script, nothing loaded from elsewhere, everything escaped."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Protocol

import msgspec
from jinja2 import Environment, Template
from markupsafe import Markup

from mortice.agent.record import Timeline, TurnCall

_FOLDER = files("mortice.agent") / "page"
_MOST_CHARS = 20_000


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of the bar that shows where the time went."""

    kind: str  # think | act | error
    seconds: float
    title: str
    to: str


class Row(Protocol):
    """A run in the list."""

    @property
    def state(self) -> str: ...


def page(run: Timeline, *, back: str = "") -> str:
    """`back`: address of the list, where there is one; a page with one renews itself while the run goes on."""
    spans = _spans(run)
    return _template("timeline.html.j2").render(
        run=run,
        back=back,
        css=Markup((_FOLDER / "timeline.css").read_text()),
        spans=spans,
        figures=_figures(run),
        think_s=sum(s.seconds for s in spans if s.kind == "think"),
        act_s=sum(s.seconds for s in spans if s.kind != "think"),
        failed=sum(s.kind == "error" for s in spans),
    )


def list_page(runs: Sequence[Row]) -> str:
    """Runs as a table; each leads to `agents/ID` beside it."""
    return _template("runs.html.j2").render(
        runs=runs,
        running=any(run.state in ("running", "waiting") for run in runs),
        css=Markup((_FOLDER / "timeline.css").read_text()),
    )


def _template(name: str) -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(seconds=_seconds, clock=_clock, gist=_gist, arguments=_pretty)
    return environment.from_string((_FOLDER / name).read_text())


def _spans(run: Timeline) -> list[Span]:
    spans = []
    for turn in run.turns:
        to = f"turn-{turn.turn}"
        spans.append(
            Span(kind="think", seconds=max(turn.seconds, 1e-3), title=f"turn {turn.turn}: thinking", to=to)
        )
        for call in turn.calls:
            kind = "error" if call.state in ("error", "refused") else "act"
            spans.append(
                Span(
                    kind=kind, seconds=max(call.seconds, 1e-3), title=f"turn {turn.turn}: {call.tool}", to=to
                )
            )
    for number, step in enumerate(run.steps, 1):
        kind = "error" if step.error else "act"
        spans.append(Span(kind=kind, seconds=max(step.seconds, 1e-3), title=step.name, to=f"step-{number}"))
    return spans


def _figures(run: Timeline) -> list[tuple[str, str]]:
    calls = [call for turn in run.turns for call in turn.calls]
    found = [("turns", str(len(run.turns))), ("calls", str(len(calls)))]
    if run.steps:
        found = [("steps", str(len(run.steps)))]
    tokens = sum(turn.input_tokens + turn.output_tokens for turn in run.turns)
    sandbox_s = sum(call.sandbox_seconds for call in calls)
    if tokens:
        found.append(("tokens", f"{tokens:,}"))
    if sandbox_s:
        found.append(("sandbox", _seconds(sandbox_s)))
    if run.usd:
        found.append(("cost", f"${run.usd:.4f}"))
    return [*found, ("from start to end", _seconds(max(run.updated_s - run.created_s, 0.0)))]


def _gist(call: TurnCall) -> str:
    text = " ".join(call.observation.split()) or " ".join(_pretty(call.arguments).split())
    return text[:140]


def _pretty(value: Any) -> str:
    """Arguments as a person would write them: a lone text as it is, else JSON."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), str):
        text = next(iter(value.values()))
    else:
        text = json.dumps(value, indent=1, ensure_ascii=False)
    return (
        text
        if len(text) <= _MOST_CHARS
        else f"{text[:_MOST_CHARS]}\n[{len(text) - _MOST_CHARS} more characters]"
    )


def _seconds(value: float) -> str:
    if value < 1:
        return f"{value * 1e3:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _clock(value: float) -> str:
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
