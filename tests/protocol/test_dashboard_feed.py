"""What GET /admin/feed tells whoever watches, and whom it tells nothing."""

import asyncio
import contextlib
import json

from mortice.cluster.api import Division, Turn
from mortice.obs.timeline import Timeline
from mortice.obs.trace import Ended
from mortice.serve import dashboard
from mortice.serve.options import ServeOptions

SECRET = "a prompt nobody else should read"


async def feed(server, headers=None):
    """(event, data) pairs of the feed, as they come."""
    async with server.http.stream("GET", "/admin/feed", headers=headers or {}) as response:
        assert response.status_code == 200, await response.aread()
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


async def ask(server, **fields):
    body = {"messages": [{"role": "user", "content": SECRET}], **fields}
    return await server.http.post("/v1/chat/completions", json=body)


async def overview_where(server, condition, headers=None):
    async with contextlib.aclosing(feed(server, headers)) as events:
        async for name, data in events:
            if name == "overview" and condition(data):
                return data


async def test_overview_names_workers_and_model(server):
    data = await overview_where(server, lambda data: True)
    assert [(w["place"], w["role"], w["state"]) for w in data["workers"]] == [
        ("prefill-0", "prefill", "running"),
        ("decode-0", "decode", "running"),
    ]
    assert data["model"] == "fake"
    assert data["state"] == "ready"
    assert data["workers"][0]["blocks"] == data["workers"][0]["free_blocks"] == 1024


def turn(t_s: float, **fields) -> Turn:
    given = {
        "rate": 2.0,
        "expected_rate": 3.0,
        "prompt_mean": 100.0,
        "output_mean": 20.0,
        "met": 0.9,
        "now": Division(1, 1),
        "wanted": Division(1, 1),
        "other": Division(0, 0, 2),
        "actions": [],
        "reason": "as it is",
        "distrusted": [],
    }
    return Turn(t_s=t_s, **(given | fields))


async def test_turns_of_the_control_loop_are_told_once(server):
    server.cluster.turns = [turn(1.0), turn(2.0, actions=["decode-0 becomes prefill"])]
    seen = []
    async with contextlib.aclosing(feed(server)) as events:
        async for name, data in events:
            if name != "overview":
                continue
            assert data["roles"]["policy"] == "static"
            seen += data["roles"]["turns"]
            if len(seen) == 2:
                server.cluster.turns.append(turn(3.0, reason="drift"))
            if len(seen) >= 3:
                break
    assert [t["t_s"] for t in seen] == [1.0, 2.0, 3.0]
    assert seen[1]["actions"] == ["decode-0 becomes prefill"]
    assert (seen[2]["reason"], seen[2]["other"]) == ("drift", {"prefill": 0, "decode": 0, "mixed": 2})


async def test_a_request_is_followed_from_queue_to_finish(server):
    kinds, told = [], ""
    async with contextlib.aclosing(feed(server)) as events:
        async for name, data in events:
            told += json.dumps(data)
            if name == "overview" and not kinds:
                answer = asyncio.create_task(ask(server))
            elif name == "happening":
                kinds.append(data["kind"])
            if name == "overview" and data["latencies"]:
                break
    await answer
    assert kinds == ["queued", "route", "prefill", "handoff", "decode", "finish"]
    assert SECRET not in told
    assert "Hello, world" not in told


async def test_latencies_from_before_the_watch_are_told_once(server):
    for _ in range(3):
        await ask(server)
    seen = []
    async with contextlib.aclosing(feed(server)) as events:
        async for name, data in events:
            if name == "overview":
                seen.append(data)
                if len(seen) == 2:
                    break
    assert [len(data["latencies"]) for data in seen] == [3, 0]
    ttft_ms, tpot_ms = seen[0]["latencies"][0]
    assert ttft_ms > 0
    assert tpot_ms >= 0
    assert seen[0]["num_finished"] == 3
    assert seen[0]["num_tokens"] == 3 * len("Hello, world") + 3


async def test_requests_in_flight_are_named_with_their_stage(serve):
    async with serve(pace_s=0.05, script=lambda request, index: [65] * 400) as server:
        asking = asyncio.create_task(ask(server, max_tokens=400))
        data = await overview_where(server, lambda data: data["flights"] and data["tokens_per_s"] > 0)
        request_id, stage = data["flights"][0]
        assert request_id == server.cluster.requests[0].id
        assert stage == "decode"
        assert data["num_in_flight"] == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        data = await overview_where(server, lambda data: data["num_failed"])
        assert (data["num_finished"], data["num_failed"], data["flights"]) == (0, 1, [])


async def test_nothing_is_computed_while_nobody_watches(server, monkeypatch):
    views = []
    monkeypatch.setattr(dashboard, "view_of", lambda worker: views.append(worker))
    before = len(server.cluster._feeds)
    await ask(server)
    await asyncio.sleep(dashboard.OVERVIEW_S * 1.5)
    assert views == []
    assert len(server.cluster._feeds) == before


async def test_a_closed_watch_leaves_nothing_behind(server):
    before = len(server.cluster._feeds)
    await overview_where(server, lambda data: True)
    await server.until(lambda: len(server.cluster._feeds) == before)


async def test_a_watcher_far_behind_loses_the_oldest(server):
    watcher = dashboard._Watcher(server.edge, dashboard.Recent(server.edge.tracer))
    listening = asyncio.create_task(watcher.listen())
    await asyncio.sleep(0)
    for number in range(dashboard.KEEP_HAPPENINGS * 2):
        server.cluster.happen("queued", f"r{number}")
        await asyncio.sleep(0)
    data = watcher.happened().decode()
    listening.cancel()
    assert data.count("event: happening") <= dashboard.KEEP_HAPPENINGS
    assert f'"r{dashboard.KEEP_HAPPENINGS * 2 - 1}"' in data
    assert '"r0"' not in data


async def test_only_so_many_may_watch(server, monkeypatch):
    monkeypatch.setattr(dashboard, "MAX_WATCHERS", 1)
    async with contextlib.aclosing(feed(server)) as events:
        await anext(events)
        refused = await server.http.get("/admin/feed")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_watchers"
    data = None
    while data is None:
        with contextlib.suppress(AssertionError):  # until the first has been let go
            data = await overview_where(server, lambda data: True)
    assert data["state"] == "ready"


async def test_the_feed_is_guarded_like_admin_routes(serve):
    async with serve(options=ServeOptions(admin_token="open")) as server:
        refused = await server.http.get("/admin/feed")
        assert refused.status_code == 401
        data = await overview_where(server, lambda data: True, {"authorization": "Bearer open"})
        assert data["state"] == "ready"
        assert (await server.http.get("/")).status_code == 200


async def test_another_sites_page_cannot_read_it(server):
    refused = await server.http.get("/admin/feed", headers={"origin": "https://elsewhere.example"})
    assert refused.status_code == 403
    refused = await server.http.get("/admin/feed", headers={"host": "elsewhere.example"})
    assert refused.status_code == 403


async def test_a_drain_is_shown(server):
    server.edge.draining = True
    data = await overview_where(server, lambda data: True)
    assert data["state"] == "draining"


async def test_the_page_and_its_files(server):
    total = 0
    for path, kind in (
        ("/", "text/html"),
        ("/page/page.css", "text/css"),
        ("/page/page.js", "text/javascript"),
    ):
        answer = await server.http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "innerHTML" not in answer.text
        total += len(answer.content)
    assert total < 66_000
    for path in ("/page/dashboard.py", "/page/..%2fdashboard.py", "/page/"):
        assert (await server.http.get(path)).status_code == 404


def test_latency_of_a_request():
    line = Timeline("r", arrival_s=100.0, first_token_s=100.25, end_s=101.25)

    def ended(completion_tokens, finish_reasons):
        return Ended(
            operation="chat",
            model="fake",
            timeline=line,
            prompt_tokens=4,
            completion_tokens=completion_tokens,
            finish_reasons=finish_reasons,
            max_tokens=64,
            temperature=1.0,
        )

    assert dashboard.latency_of(ended(11, ["stop"])) == dashboard.Latency(250.0, 100.0)
    assert dashboard.latency_of(ended(22, ["stop", "length"])) == dashboard.Latency(250.0, 100.0)
    assert dashboard.latency_of(ended(1, ["stop"])) == dashboard.Latency(250.0, None)


def test_recent_forgets_the_oldest_and_passes_on():
    passed = []

    class Tracer:
        def record(self, ended):
            passed.append(ended)

        def close(self):
            passed.append("closed")

    recent = dashboard.Recent(Tracer())
    for number in range(dashboard.KEEP_LATENCIES + 10):
        line = Timeline("r", arrival_s=1.0, first_token_s=1.0 + number, end_s=1.0 + number)
        recent.record(
            Ended(
                operation="chat",
                model="fake",
                timeline=line,
                prompt_tokens=1,
                completion_tokens=1,
                finish_reasons=["stop"],
                max_tokens=1,
                temperature=1.0,
            )
        )
    assert len(recent.since(0)) == dashboard.KEEP_LATENCIES
    assert recent.since(0)[0].ttft_ms == 10_000.0
    assert len(recent.since(dashboard.KEEP_LATENCIES)) == 10
    recent.close()
    assert len(passed) == dashboard.KEEP_LATENCIES + 11
