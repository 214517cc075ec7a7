"""POST /v1/chat/completions."""

from typing import Any

import msgspec
from msgspec import UNSET

from mortice.serve.answers import ChatAnswer, ChatChoice, ChatCompletion, FunctionCall, ToolCall
from mortice.serve.api import ChatRequest
from mortice.serve.building import (
    bad_words,
    check_n,
    compile_grammar,
    engine_request,
    fingerprint,
    now_s,
    output_room,
    sampling_params,
)
from mortice.serve.chat_events import ChatEvents
from mortice.serve.edge import Edge, new_id
from mortice.serve.link import Link
from mortice.serve.logprobs import ChatLogprobs, chat_logprobs, prompt_logprobs
from mortice.serve.running import Run, collect, stream
from mortice.serve.tally import usage_of
from mortice.serve.voice import Piece, VoiceSettings
from mortice.specs.errors import RequestError
from mortice.text.call_grammar import Reasoning
from mortice.text.calls import ChatInput, GrammarInput
from mortice.text.reasoning import reasoning_of
from mortice.text.stream import check_stop
from mortice.text.tool_choice import read_tool_choice
from mortice.text.tools import CallArguments, CallStart, ToolFormat

_PROMPT_TAIL = 8  # tokens in which an opened thought would be seen


async def chat(edge: Edge, link: Link, body: ChatRequest) -> None:
    arrival_s = now_s()
    adapter = edge.adapter_for(body.model)
    n = check_n(edge, body.n)
    stop = check_stop(body.stop)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise RequestError("prompt_logprobs of a chat cannot be streamed", param="prompt_logprobs")
    with edge.admitted(1):
        prompt = await edge.text.render_chat(_chat_input(body))
        reasoning = reasoning_at(edge, prompt)
        grammar = await compile_grammar(edge, _grammar_input(body, reasoning))
        wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        bound = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        sampling = sampling_params(
            edge,
            body,
            max_tokens=output_room(edge, prompt, wanted, place="messages", bound=bound),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            prompt_logprobs=body.prompt_logprobs,
            grammar=grammar,
            bad_words=await bad_words(edge, body.bad_words),
        )
        request = engine_request(
            edge,
            link,
            body,
            request_id=new_id("chatcmpl", body.request_id),
            prompt=prompt,
            sampling=sampling,
            n=n,
            adapter=adapter,
            arrival_s=arrival_s,
        )
        settings = VoiceSettings(
            edge.text,
            stop=stop,
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            reasoning=reasoning,
            tool_format=call_format(
                edge, body.tools, body.tool_choice, body.parallel_tool_calls is not False
            ),
        )
        run = Run(edge, [request], settings, "chat")
        if body.stream:
            await stream(link, run, ChatEvents(run, body))
        else:
            await link.json(_answer(run, body, await collect(run)))


def reasoning_at(edge: Edge, prompt: list[int]) -> Reasoning:
    """Whether the answer to this prompt may begin with a thought."""
    tail = edge.text.vocabulary.decode(prompt[-_PROMPT_TAIL:], skip_special_tokens=False)
    return reasoning_of(edge.text.chat_template, tail)


def call_format(edge: Edge, tools: Any, tool_choice: Any, parallel: bool) -> ToolFormat | None:
    """The form in which calls will come; None where none may. Where one must, the grammar sees to the
    form.
    """
    choice = read_tool_choice(tools, tool_choice, parallel)
    if choice is None:
        return None
    return "hermes" if choice.required else edge.text.tool_format


def template_kwargs(kwargs: dict[str, Any] | None, effort: str | None) -> dict[str, Any]:
    """The template's variables; an effort of `none` asks templates that can to open no thought."""
    found = dict(kwargs or {})
    if effort is not None:
        found.setdefault("reasoning_effort", effort)
        if effort == "none":
            found.setdefault("enable_thinking", False)
    return found


def _chat_input(body: ChatRequest) -> ChatInput:
    going_on = bool(body.continue_final_message)
    return ChatInput(
        messages=body.messages,
        tools=body.tools,
        tool_choice=body.tool_choice,
        add_generation_prompt=not going_on
        if body.add_generation_prompt is None
        else body.add_generation_prompt,
        continue_final_message=going_on,
        chat_template_kwargs=template_kwargs(body.chat_template_kwargs, body.reasoning_effort),
    )


def _grammar_input(body: ChatRequest, reasoning: Reasoning) -> GrammarInput:
    form = body.response_format
    return GrammarInput(
        response_format=None if form is None or form.type == "text" else msgspec.to_builtins(form),
        tools=body.tools,
        tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        guided_json=body.guided_json,
        guided_regex=body.guided_regex,
        guided_choice=body.guided_choice,
        guided_grammar=body.guided_grammar,
        structured_outputs=body.structured_outputs,
        reasoning=reasoning,
    )


def _answer(run: Run, body: ChatRequest, pieces: list[Piece]) -> ChatCompletion:
    edge, request = run.edge, run.requests[0]
    scores = prompt_logprobs(edge.text.vocabulary, pieces[0].prompt_logprobs)
    return ChatCompletion(
        id=request.id,
        created=int(request.arrival_s),
        model=request.adapter or edge.cluster.model.name,
        system_fingerprint=fingerprint(edge),
        choices=[_choice(run, body, piece) for piece in pieces],
        usage=usage_of(run.tallies),
        prompt_token_ids=request.prompt_token_ids if body.return_token_ids else UNSET,
        prompt_logprobs=UNSET if scores is None else scores,
    )


def _choice(run: Run, body: ChatRequest, piece: Piece) -> ChatChoice:
    vocabulary = run.edge.text.vocabulary
    thought = piece.reasoning if piece.reasoning and body.include_reasoning is not False else UNSET
    calls = whole_calls(piece.calls)
    entries = piece.logprobs[: len(piece.token_ids) - piece.num_hidden]
    return ChatChoice(
        index=piece.index,
        message=ChatAnswer(
            content=piece.content or (None if calls else ""),
            reasoning=thought,
            reasoning_content=thought,
            tool_calls=calls or UNSET,
        ),
        logprobs=ChatLogprobs(chat_logprobs(vocabulary, entries)) if body.logprobs else None,
        finish_reason=piece.finish_reason or "stop",
        stop_reason=piece.stop_reason,
        weight_version=piece.versions[-1] if piece.versions else 0,
        token_ids=piece.token_ids if body.return_token_ids else UNSET,
    )


def whole_calls(events: list[CallStart | CallArguments]) -> list[ToolCall]:
    """The calls that these events tell of, in order."""
    found: dict[int, tuple[CallStart, list[str]]] = {}
    for event in events:
        if isinstance(event, CallStart):
            found[event.index] = (event, [])
        else:
            found[event.index][1].append(event.delta)
    return [
        ToolCall(id=start.id, function=FunctionCall(start.name, "".join(parts) or "{}"))
        for start, parts in found.values()
    ]
