"""The server that the conformance suite of MCP wants to meet: every feature once, under the suite's names. It is served by
the same code as our servers (`mortice.agent.mcp.serving`).

Usage: fixture_server.py [PORT]; the address is printed on stderr.
"""

import asyncio
import base64
import json
import sys
from typing import Annotated, Any

import mcp_types as types
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, Field

from mortice.agent.mcp.serving import serve_http

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
HEAD = (
    b"RIFF\x26\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00@\x1f\x00\x00@\x1f\x00\x00\x01\x00\x08\x00"
)
WAV = base64.b64encode(HEAD + b"data\x02\x00\x00\x00\x80\x80").decode()

server = MCPServer("mortice-conformance", version="1.0")


def text(value: str) -> types.TextContent:
    return types.TextContent(type="text", text=value)


def form(message: str, properties: dict[str, Any], required: list[str]) -> types.ElicitRequest:
    schema = {"type": "object", "properties": properties, "required": required}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(prompt: str, max_tokens: int) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=text(prompt))
    return types.CreateMessageRequest(
        params=types.CreateMessageRequestParams(messages=[message], max_tokens=max_tokens)
    )


# Plain tools.


@server.tool()
def test_simple_text() -> str:
    """Simple text."""
    return "This is a simple text response for testing."


@server.tool()
def test_image_content() -> types.ImageContent:
    """A picture."""
    return types.ImageContent(type="image", data=PNG, mime_type="image/png")


@server.tool()
def test_audio_content() -> types.AudioContent:
    """A sound."""
    return types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")


@server.tool()
def test_embedded_resource() -> types.EmbeddedResource:
    """A resource within a result."""
    contents = types.TextResourceContents(
        uri="test://embedded-resource", mime_type="text/plain", text="This is an embedded resource content."
    )
    return types.EmbeddedResource(type="resource", resource=contents)


@server.tool()
def test_multiple_content_types() -> list[types.TextContent | types.ImageContent | types.EmbeddedResource]:
    """Text, a picture and a resource."""
    contents = types.TextResourceContents(
        uri="test://mixed-content-resource",
        mime_type="application/json",
        text=json.dumps({"test": "data", "value": 123}),
    )
    return [
        text("Multiple content types test:"),
        types.ImageContent(type="image", data=PNG, mime_type="image/png"),
        types.EmbeddedResource(type="resource", resource=contents),
    ]


@server.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    """Logs while it works."""
    await ctx.info("Tool execution started")
    await asyncio.sleep(0.05)
    await ctx.info("Tool processing data")
    await asyncio.sleep(0.05)
    await ctx.info("Tool execution completed")
    return "logged three times"


@server.tool()
def test_error_handling() -> str:
    """Fails."""
    raise ToolError("This tool intentionally returns an error for testing")


@server.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    """Tells how far it is."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await asyncio.sleep(0.05)
    return "went from 0 to 100"


@server.tool()
async def test_reconnection(ctx: Context) -> str:
    """Closes its stream, so that the client comes back for the result."""
    await ctx.close_sse_stream()
    await asyncio.sleep(0.1)
    return "you came back"


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    """Asks the client's model."""
    message = types.SamplingMessage(role="user", content=text(prompt))
    result = await ctx.session.create_message(messages=[message], max_tokens=100)
    return f"LLM response: {getattr(result.content, 'text', '')}"


async def elicited(
    ctx: Context, message: str, properties: dict[str, Any], required: list[str]
) -> types.ElicitResult:
    schema = {"type": "object", "properties": properties, "required": required}
    return await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    """Asks the user."""
    properties = {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    }
    result = await elicited(ctx, message, properties, ["username", "email"])
    return f"User response: action={result.action}, content={json.dumps(result.content or {})}"


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    """Asks with a default for each type."""
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    result = await elicited(ctx, "Check the defaults", properties, [])
    return f"Elicitation completed: action={result.action}, content={json.dumps(result.content or {})}"


@server.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    """Asks with each kind of choice."""
    options = ["option1", "option2", "option3"]
    titled = [
        {"const": f"value{n}", "title": f"{word} Option"}
        for n, word in enumerate(("First", "Second", "Third"), 1)
    ]
    choices = [
        {"const": f"value{n}", "title": f"{word} Choice"}
        for n, word in enumerate(("First", "Second", "Third"), 1)
    ]
    properties = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": choices}},
    }
    result = await elicited(ctx, "Choose", properties, [])
    return f"Elicitation completed: action={result.action}, content={json.dumps(result.content or {})}"


# Input that is asked for in the result (2026-07-28).

InputRequired = types.InputRequiredResult


@server.tool()
def test_input_required_result_elicitation(ctx: Context) -> str | InputRequired:
    """Asks for a name."""
    given = (ctx.input_responses or {}).get("user_name")
    name = (given.content or {}).get("name") if isinstance(given, types.ElicitResult) else None
    if isinstance(name, str):
        return f"Hello, {name}!"
    request = form("What is your name?", {"name": {"type": "string"}}, ["name"])
    return InputRequired(input_requests={"user_name": request})


@server.tool()
def test_input_required_result_sampling(ctx: Context) -> str | InputRequired:
    """Asks the client's model."""
    given = (ctx.input_responses or {}).get("capital_question")
    if isinstance(given, types.CreateMessageResult):
        return f"The model says: {getattr(given.content, 'text', '')}"
    return InputRequired(input_requests={"capital_question": sample("What is the capital of France?", 100)})


@server.tool()
def test_input_required_result_list_roots(ctx: Context) -> str | InputRequired:
    """Asks for the client's roots."""
    given = (ctx.input_responses or {}).get("client_roots")
    if isinstance(given, types.ListRootsResult):
        return "Roots: " + ", ".join(str(root.uri) for root in given.roots)
    return InputRequired(input_requests={"client_roots": types.ListRootsRequest()})


@server.tool()
def test_input_required_result_request_state(ctx: Context) -> str | InputRequired:
    """Hands a state out and wants it back."""
    if ctx.request_state == "confirming" and "confirm" in (ctx.input_responses or {}):
        return "state-ok"
    request = form("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])
    return InputRequired(input_requests={"confirm": request}, request_state="confirming")


@server.tool()
def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequired:
    """Hands a sealed state out; the SDK refuses one that was changed."""
    if ctx.request_state == "sealed":
        return "the state came back whole"
    request = form("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])
    return InputRequired(input_requests={"confirm": request}, request_state="sealed")


@server.tool()
def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequired:
    """Asks for three things at once."""
    given = ctx.input_responses or {}
    if {"user_name", "greeting", "client_roots"} <= set(given) and ctx.request_state == "all":
        return "all three are here"
    requests = {
        "user_name": form("What is your name?", {"name": {"type": "string"}}, ["name"]),
        "greeting": sample("Generate a greeting", 50),
        "client_roots": types.ListRootsRequest(),
    }
    return InputRequired(input_requests=requests, request_state="all")


@server.tool()
def test_input_required_result_multi_round(ctx: Context) -> str | InputRequired:
    """Asks twice, one after the other."""
    given = ctx.input_responses or {}
    if ctx.request_state == "second" and "step2" in given:
        return "both steps are done"
    if ctx.request_state == "first" and "step1" in given:
        request = form("Step 2: What is your favorite color?", {"color": {"type": "string"}}, ["color"])
        return InputRequired(input_requests={"step2": request}, request_state="second")
    request = form("Step 1: What is your name?", {"name": {"type": "string"}}, ["name"])
    return InputRequired(input_requests={"step1": request}, request_state="first")


@server.tool()
def test_input_required_result_capabilities(ctx: Context) -> str | InputRequired:
    """Asks only for what the client can do."""
    can = ctx.client_capabilities
    requests: dict[str, Any] = {}
    if can is not None and can.elicitation is not None:
        requests["name"] = form("What is your name?", {"name": {"type": "string"}}, ["name"])
    if can is not None and can.sampling is not None:
        requests["greeting"] = sample("Generate a greeting", 50)
    if ctx.input_responses or not requests:
        return "done"
    return InputRequired(input_requests=requests)


@server.tool()
def test_missing_capability(ctx: Context) -> str:
    """Needs a client that samples."""
    can = ctx.client_capabilities
    if can is None or can.sampling is None:
        data = types.MissingRequiredClientCapabilityErrorData(
            required_capabilities=types.ClientCapabilities(sampling=types.SamplingCapability())
        )
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="the client must declare sampling",
            data=data.model_dump(by_alias=True, exclude_none=True),
        )
    return "the client can sample"


# Lists that change.


@server.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    """Adds a tool and takes it away again."""
    server.add_tool(test_simple_text, name="test_added")
    await ctx.notify_tools_changed()
    server.remove_tool("test_added")
    return "changed"


@server.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    """Says that the prompts changed."""
    await ctx.notify_prompts_changed()
    return "changed"


@server.tool()
async def test_logging_tool(ctx: Context) -> str:
    """Logs once."""
    await ctx.info("a line")
    return "logged"


@server.tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequired:
    """Tells how far it is, then asks."""
    if "confirm" in (ctx.input_responses or {}):
        return "confirmed"
    await ctx.report_progress(1, 2)
    return InputRequired(input_requests={"confirm": form("Go on?", {"ok": {"type": "boolean"}}, ["ok"])})


class Address(BaseModel):
    street: str
    city: str


@server.tool()
def test_custom_headers(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})], query: str
) -> str:
    """Mirrors a parameter in a header."""
    return f"{region} {query}"


# Resources and prompts.


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """A text that stays."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """A picture that stays."""
    return base64.b64decode(PNG)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    """One of many."""
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    """A text that may change."""
    return "watched"


@server.prompt()
def test_simple_prompt() -> str:
    """A prompt without arguments."""
    return "This is a simple prompt for testing."


@server.prompt()
def test_prompt_with_arguments(
    arg1: Annotated[str, Field(description="First test argument")],
    arg2: Annotated[str, Field(description="Second test argument")],
) -> str:
    """A prompt with two arguments."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@server.prompt()
def test_prompt_with_embedded_resource(
    resourceUri: Annotated[str, Field(description="What to embed")],
) -> list[UserMessage]:
    """A prompt with a resource in it."""
    contents = types.TextResourceContents(
        uri=resourceUri, mime_type="text/plain", text="Embedded resource content for testing."
    )
    return [
        UserMessage(types.EmbeddedResource(type="resource", resource=contents)),
        UserMessage("Please process the embedded resource above."),
    ]


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """A prompt with a picture in it."""
    return [
        UserMessage(types.ImageContent(type="image", data=PNG, mime_type="image/png")),
        UserMessage("Please analyze the image above."),
    ]


@server.prompt()
def test_input_required_result_prompt(ctx: Context) -> str | InputRequired:
    """A prompt that asks first."""
    given = (ctx.input_responses or {}).get("user_context")
    if isinstance(given, types.ElicitResult):
        return f"Context: {(given.content or {}).get('context', '')}"
    request = form("What context should the prompt use?", {"context": {"type": "string"}}, ["context"])
    return InputRequired(input_requests={"user_context": request})


@server.completion()
async def complete(ref: Any, argument: types.CompletionArgument, context: Any) -> types.Completion:
    """Cities that begin alike."""
    values = [word for word in ("paris", "park", "party") if word.startswith(argument.value)]
    return types.Completion(values=values, total=len(values), has_more=False)


# What the handshake era still has and the SDK's high-level server leaves out.

watched_uris: set[str] = set()


async def set_level(ctx: Any, params: types.SetLevelRequestParams) -> types.EmptyResult:
    return types.EmptyResult()


async def subscribe(ctx: Any, params: types.SubscribeRequestParams) -> types.EmptyResult:
    watched_uris.add(str(params.uri))
    return types.EmptyResult()


async def unsubscribe(ctx: Any, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
    watched_uris.discard(str(params.uri))
    return types.EmptyResult()


below = server._lowlevel_server
below.add_request_handler("logging/setLevel", types.SetLevelRequestParams, set_level)
below.add_request_handler("resources/subscribe", types.SubscribeRequestParams, subscribe)
below.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, unsubscribe)

if __name__ == "__main__":
    asyncio.run(serve_http(server, f"127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 0}", None))
