"""`mortice agent mcp`: see, check and pin what MCP servers offer."""

from pathlib import Path
from typing import Annotated

import typer

mcp = typer.Typer(name="mcp", help="See, check and pin what MCP servers offer.", no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option(help="A document with `mcpServers`.")]
HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder with the pins, as for `agent run`.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@mcp.command("ls")
def list_tools(config: ConfigOption, folder: HomeOption = None, as_json: JsonOption = False) -> None:
    """Connect to each server and list its tools, with the full text a model would read and what is withheld."""
    from mortice.agent.home import home
    from mortice.cli.agent_servers import print_tools

    print_tools(home(folder, None), config, as_json=as_json)


@mcp.command("pin")
def pin_tools(
    config: ConfigOption,
    server: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    folder: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve the tools of servers as they are now. Read them first with `mortice agent mcp ls`."""
    from mortice.agent.home import home
    from mortice.cli.agent_servers import pin

    pin(home(folder, None), config, server or [], as_json=as_json)


@mcp.command("call")
def call_tool(
    config: ConfigOption,
    server: Annotated[str, typer.Argument(help="Name of the server in the document.")],
    tool: Annotated[str, typer.Argument(help="Name of the tool as the server has it.")],
    arguments: Annotated[str, typer.Option(help="JSON object.")] = "{}",
    folder: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Call one tool and print what it gives."""
    from mortice.agent.home import home
    from mortice.cli.agent_servers import call

    call(home(folder, None), config, server, tool, arguments, as_json=as_json)
