"""The routes that run no model: models, health, version, metrics, tokenising."""

from msgspec import UNSET

from mortice import __version__
from mortice.serve.answers import Detokenized, Health, Model, ModelList, Tokenized, Version
from mortice.serve.api import DetokenizeRequest, TokenizeRequest
from mortice.serve.building import check_prompt_ids
from mortice.serve.edge import Edge
from mortice.serve.link import JSON, Link
from mortice.specs.errors import NotFound, RequestError
from mortice.text.calls import ChatInput


def _models(edge: Edge) -> list[Model]:
    info = edge.cluster.model

    def model(name: str, parent: str | None) -> Model:
        return Model(
            id=name, created=edge.created, root=info.name, parent=parent, max_model_len=info.max_context
        )

    return [model(info.name, None), *(model(name, info.name) for name in info.adapters)]


async def list_models(edge: Edge, link: Link) -> None:
    await link.json(ModelList(data=_models(edge)))


async def get_model(edge: Edge, link: Link) -> None:
    wanted = link.scope["path_params"]["model"]
    for model in _models(edge):
        if model.id == wanted:
            await link.json(model)
            return
    raise NotFound(f"the model {wanted!r} does not exist", param="model", code="model_not_found")


async def health(edge: Edge, link: Link) -> None:
    """200 if a new request can be admitted, else 503 and why. `/ready` is the same under its other name."""
    reason = edge.why_not_ready()
    status = "ready" if reason is None else "not ready"
    headers = JSON if reason is None else [*JSON, (b"retry-after", b"1")]
    await link.json(Health(status=status, reason=reason), 200 if reason is None else 503, headers)


async def version(edge: Edge, link: Link) -> None:
    await link.json(Version(version=__version__))


async def metrics(edge: Edge, link: Link) -> None:
    await link.answer(
        edge.metrics.render(), headers=[(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]
    )


async def tokenize(edge: Edge, link: Link, body: TokenizeRequest) -> None:
    edge.adapter_for(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if body.prompt is not None:
        tokens = await edge.text.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
    else:
        tokens = await edge.text.render_chat(
            ChatInput(
                messages=body.messages or [],
                tools=body.tools,
                add_generation_prompt=body.add_generation_prompt
                if body.add_generation_prompt is not None
                else not body.continue_final_message,
                continue_final_message=bool(body.continue_final_message),
                chat_template_kwargs=body.chat_template_kwargs or {},
            )
        )
    vocabulary = edge.text.vocabulary
    strings = [vocabulary.token_text(token)[0] for token in tokens] if body.return_token_strs else UNSET
    await link.json(
        Tokenized(
            count=len(tokens),
            max_model_len=edge.cluster.model.max_context,
            tokens=tokens,
            token_strs=strings,
        )
    )


async def detokenize(edge: Edge, link: Link, body: DetokenizeRequest) -> None:
    edge.adapter_for(body.model)
    tokens = check_prompt_ids(edge, body.tokens, "tokens") if body.tokens else []
    skip = bool(body.skip_special_tokens)
    await link.json(Detokenized(prompt=edge.text.vocabulary.decode(tokens, skip)))
