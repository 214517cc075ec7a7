"""The pages that other rooms show beside the dashboard of `mortice serve`. A room is imported when its page is asked for."""

from importlib.util import find_spec

from mortice.serve.options import Page


def pages() -> tuple[Page, ...]:
    """Runs of agents, where the extra `agent` is installed."""
    if find_spec("dbos") is None:
        return ()
    return (
        Page(path="/agents", draw=_runs, title="Agents"),
        Page(path="/agents/{run}", draw=_run),
    )


async def _runs(given: dict[str, str]) -> str:
    from mortice.agent.dashboard import draw_runs
    from mortice.agent.home import home

    return await draw_runs(home())


async def _run(given: dict[str, str]) -> str:
    from mortice.agent.dashboard import draw_run
    from mortice.agent.home import home

    return await draw_run(home(), given["run"], back="../agents")
