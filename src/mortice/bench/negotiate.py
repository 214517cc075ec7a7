"""Find out, before anything is measured, what the server takes and how long its prompts are."""

from dataclasses import dataclass
from typing import Any

import msgspec

from mortice.bench.endpoint import Endpoint, Prompt, one_line
from mortice.bench.http import ExchangeFailed
from mortice.bench.prompts import Calibration, PromptSource, calibrate
from mortice.bench.timeline import Timeline
from mortice.specs.errors import NotFound, RequestError, Unavailable

# Fields a server may refuse, in the order in which we give them up where its message names none of them.
_OPTIONAL = ("ignore_eos", "stream_options")


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed. `fields` go into each request beside model and prompt; `output_field` holds the
    length."""

    fields: dict[str, Any]
    output_field: str
    calibration: Calibration
    refused: tuple[str, ...]  # fields the server would not take

    def body(self, endpoint: Endpoint, prompt: Prompt, output_len: int) -> bytes:
        return endpoint.body(prompt, self.fields | {self.output_field: output_len})


async def negotiate(
    endpoint: Endpoint, *, ignore_eos: bool, temperature: float, source: PromptSource
) -> Terms:
    """Agree on fields by probe requests, then calibrate prompt lengths.

    Raises Unavailable if nothing answers, RequestError (NotFound for an unknown model) if the server refuses
    the request whatever is left out.
    """
    fields: dict[str, Any] = {
        "stream": True,
        "temperature": temperature,
        "stream_options": {"include_usage": True},
        "max_tokens": 2,
    }
    if ignore_eos:
        fields["ignore_eos"] = True
    refused: list[str] = []
    while (probe := await _ask(endpoint, "Here we are", fields)).failure not in (None, "no content"):
        name = _what_to_give_up(probe, fields)
        if name is None:
            raise _refusal(endpoint, probe)
        refused.append(name)
        del fields[name]
        if name == "max_tokens":
            fields["max_completion_tokens"] = 2
    output_field = "max_tokens" if "max_tokens" in fields else "max_completion_tokens"

    async def usage(prompt: Prompt) -> int | None:
        return (await _ask(endpoint, prompt, fields)).prompt_tokens

    async def tokenize(prompt: Prompt) -> int | None:
        return await _tokenize(endpoint, prompt)

    calibration = await calibrate(source, usage=usage, tokenize=tokenize)
    del fields[output_field]
    return Terms(fields, output_field, calibration, tuple(refused))


async def _ask(endpoint: Endpoint, prompt: Prompt, fields: dict[str, Any]) -> Timeline:
    timeline = Timeline(index=-1, prompt_len=0, output_len=2)
    await endpoint.stream(endpoint.body(prompt, fields), timeline)
    return timeline


def _what_to_give_up(probe: Timeline, fields: dict[str, Any]) -> str | None:
    """The field to send no more, if the failure is a refusal that may be due to one."""
    if probe.failure not in ("status 400", "status 422"):
        return None
    for name in (*_OPTIONAL, "max_tokens"):
        if name in fields and name in probe.detail:
            return name
    return next((name for name in _OPTIONAL if name in fields), None)


def _refusal(endpoint: Endpoint, probe: Timeline) -> Exception:
    said = f"{endpoint.base_url} answered a probe request with {probe.failure}: {probe.detail}"
    match probe.failure:
        case "status 401" | "status 403":
            return RequestError(
                f"{said} (set the key in the variable that --api-key-env names)", param="--api-key-env"
            )
        case "status 404":
            return NotFound(f"{said} (see --model and --base-url)", param="--model")
        case "status 400" | "status 422":
            return RequestError(said, param="--model")
        case "refused" | "closed" | "timeout":
            return Unavailable(f"no server at {endpoint.base_url}: {probe.detail}")
    return Unavailable(said)


async def _tokenize(endpoint: Endpoint, prompt: Prompt) -> int | None:
    """Tokens by /tokenize, in the dialect of vLLM (prompt or messages) or llama.cpp (content)."""
    said: dict[str, Any] = {"prompt": prompt}
    if endpoint.api == "chat":
        said = {"messages": [{"role": "user", "content": prompt}]}
    for document in ({"model": endpoint.model} | said, {"content": prompt}):
        try:
            status, answer = await endpoint.json("POST", f"{endpoint.root}/tokenize", document)
        except ExchangeFailed:
            return None
        if status == 200 and isinstance(answer, dict):
            count = answer.get("count") or len(answer.get("tokens") or ())
            if count:
                return int(count)
    return None


async def first_model(endpoint: Endpoint) -> str:
    """The id of the first model the server lists. Raises Unavailable if it lists none."""
    try:
        status, answer = await endpoint.json("GET", f"{endpoint.path}/models")
        return str(msgspec.convert(answer, _Models).data[0].id)
    except ExchangeFailed as failed:
        raise Unavailable(f"no server at {endpoint.base_url}: {failed.detail}") from failed
    except (msgspec.ValidationError, IndexError) as error:
        reason = one_line(
            f"{endpoint.base_url}/models lists no model (HTTP status {status}): name one with --model"
        )
        raise RequestError(reason, param="--model") from error


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]
