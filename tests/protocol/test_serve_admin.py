"""Who may do what, what a server under load or going down answers, and what can be seen of it."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mortice import __version__
from mortice.serve.options import ServeOptions
from mortice.specs.deployment import Admission, Deployment

ASK = {"prompt": "Hi"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_api_keys(serve):
    async with serve(options=ServeOptions(api_keys=("one", "two"))) as server:
        post = server.http.post
        assert (await post("/v1/completions", json=ASK)).status_code == 401
        refused = await post("/v1/completions", json=ASK, headers=bearer("three"))
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        assert (await post("/v1/completions", json=ASK, headers=bearer("two"))).status_code == 200
        assert (await server.http.get("/v1/models")).status_code == 401
        assert (await server.http.get("/health")).status_code == 200


async def test_admin_token(serve):
    async with serve(options=ServeOptions(admin_token="secret")) as server:
        assert (await server.http.get("/admin/workers")).status_code == 401
        workers = await server.http.get("/admin/workers", headers=bearer("secret"))
        assert {worker["role"] for worker in workers.json()} == {"prefill", "decode"}


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"host": "evil.example"}, {"x-forwarded-for": "127.0.0.1"}],
    ids=["other site's page", "rebound name", "proxy"],
)
async def test_admin_is_for_this_machine(server, headers):
    assert (await server.http.get("/admin/workers")).status_code == 200
    assert (await server.http.get("/admin/workers", headers=headers)).status_code == 403


async def test_workers_are_a_list(server):
    workers = (await server.http.get("/admin/workers")).json()
    assert isinstance(workers, list)
    assert {"id", "role", "pid", "state", "stats"} <= set(workers[0])


async def test_states_and_verbs(server):
    http, cluster = server.http, server.cluster
    assert (await http.post("/admin/pause")).json()["state"] == "paused"
    ready = await http.get("/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "no worker can take a request: paused")
    assert (await http.post("/admin/resume", json={})).json()["state"] == "running"
    assert (await http.post("/admin/sleep", json={"level": 2})).json()["state"] == "asleep"
    conflict = await http.post("/v1/completions", json=ASK)
    assert (conflict.status_code, conflict.json()["error"]["type"]) == (409, "conflict_error")
    assert (await http.post("/admin/pause")).status_code == 409
    await http.post("/admin/wake")
    await http.post("/admin/weights", json={"path": "weights", "version": 5})
    answer = (await http.post("/v1/completions", json=ASK)).json()
    assert answer["choices"][0]["weight_version"] == 5
    assert answer["system_fingerprint"].endswith("w5")
    await http.post("/admin/reset_prefix_cache")
    await http.post("/admin/check_integrity", json={"worker_id": "decode-0"})
    assert cluster.calls[-1] == ("check_integrity", {}, "decode-0")
    assert (await http.post("/admin/check_integrity", json={"worker_id": "nobody"})).status_code == 404
    assert (await http.post("/admin/weights", json={"path": "x"})).json()["error"]["param"] == "version"


async def test_roles_are_shown_and_changed(server):
    http, cluster = server.http, server.cluster
    shown = (await http.get("/admin/roles")).json()
    assert shown["policy"] == "static"
    assert shown["division"] == {"prefill": 1, "decode": 1, "mixed": 0}
    assert [w["role"] for w in shown["workers"]] == ["prefill", "decode"]
    changed = await http.post("/admin/roles", json={"worker_id": "prefill-0", "role": "mixed"})
    assert changed.json()["division"] == {"prefill": 0, "decode": 1, "mixed": 1}
    assert cluster.worn["prefill-0"] == "mixed"
    divided = await http.post("/admin/roles", json={"prefill": 1, "decode": 1})
    assert divided.json()["division"] == {"prefill": 1, "decode": 1, "mixed": 0}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "worker_id"),
        ({"worker_id": "decode-0"}, 400, "worker_id"),
        ({"worker_id": "decode-0", "role": "prefill", "decode": 1}, 400, "worker_id"),
        ({"worker_id": "decode-0", "role": "cook"}, 400, "role"),
        ({"worker_id": "nobody", "role": "decode"}, 404, "worker_id"),
        ({"worker_id": "decode-0", "role": "prefill"}, 409, None),
        ({"prefill": 2}, 409, None),
        ({"prefill": 9, "decode": 1}, 400, "prefill"),
        ({"prefill": -1, "decode": 3}, 400, "prefill"),
    ],
)
async def test_roles_that_cannot_be_are_refused(server, body, status, param):
    refused = await server.http.post("/admin/roles", json=body)
    assert refused.status_code == status
    assert refused.json()["error"]["param"] == param
    assert server.cluster.worn == {"prefill-0": "prefill", "decode-0": "decode"}


async def test_adapters_come_and_go(server, tmp_path):
    http = server.http
    given = {"lora_name": "poet", "lora_path": str(tmp_path)}
    assert (await http.post("/v1/load_lora_adapter", json=given)).status_code == 200
    assert "poet" in [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
    assert (await http.post("/v1/completions", json={**ASK, "model": "poet"})).json()["model"] == "poet"
    assert (await http.post("/v1/load_lora_adapter", json=given)).json()["error"]["param"] == "lora_name"
    assert (await http.post("/v1/unload_lora_adapter", json={"lora_name": "poet"})).status_code == 200
    assert (await http.post("/v1/completions", json={**ASK, "model": "poet"})).status_code == 404
    gone = await http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/nowhere"})
    assert gone.json()["error"]["param"] == "lora_path"


async def test_deployment_is_shown(serve):
    async with serve(options=ServeOptions(deployment=Deployment(model="m", decode=2))) as server:
        assert (await server.http.get("/admin/deployment")).json()["decode"] == 2


async def test_a_full_queue_is_429(serve):
    async with serve(options=ServeOptions(admission=Admission(max_queued=2)), first_token_s=60) as server:
        first = [asyncio.create_task(server.http.post("/v1/completions", json=ASK)) for _ in range(2)]
        await server.until(lambda: server.edge.num_in_flight == 2)
        refused = await server.http.post("/v1/completions", json=ASK)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert (await server.http.get("/health")).json()["reason"] == "the queue is full"
        assert (await server.http.get("/v1/models")).status_code == 200
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        await server.until(lambda: server.edge.num_in_flight == 0)


async def test_a_drain_lets_requests_end_and_takes_no_new_ones(server):
    server.cluster.pace_s = 0.02
    running = asyncio.create_task(server.http.post("/v1/completions", json=ASK))
    await server.until(lambda: server.edge.num_in_flight == 1)
    draining = asyncio.create_task(server.http.post("/admin/drain"))
    await server.until(lambda: server.edge.draining)
    refused = await server.http.post("/v1/completions", json=ASK)
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert (await server.http.get("/health")).json() == {"status": "not ready", "reason": "draining"}
    assert (await running).json()["choices"][0]["text"] == "Hello, world"
    assert (await draining).json()["state"] == "drained"


async def test_metrics_count_what_happened(server):
    await server.http.post("/v1/completions", json=ASK)
    await server.http.post("/v1/completions", json={"prompt": ["a", "b"], "max_tokens": 2})
    text = (await server.http.get("/metrics")).text
    samples = {
        (sample.name, sample.labels.get("finished_reason") or sample.labels.get("role")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["mortice:request_success_total", "stop"] == 1
    assert samples["mortice:request_success_total", "length"] == 2
    assert samples["mortice:generation_tokens_total", None] == 17
    assert samples["mortice:prompt_tokens_total", None] == 4
    assert samples["mortice:time_to_first_token_seconds_count", None] == 3
    assert samples["mortice:inter_token_latency_seconds_count", None] == 14
    assert samples["mortice:e2e_request_latency_seconds_count", None] == 3
    assert samples["mortice:worker_up", "decode"] == 1


async def test_tokens_there_and_back(server):
    http = server.http
    there = (await http.post("/tokenize", json={"prompt": "Hé", "return_token_strs": True})).json()
    assert bytes(there["tokens"]).decode() == "Hé"
    assert there["count"] == 3
    assert len(there["token_strs"]) == 3
    back = await http.post("/detokenize", json={"tokens": there["tokens"]})
    assert back.json() == {"prompt": "Hé"}
    chat = (await http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})).json()
    whole = (await http.post("/detokenize", json={"tokens": chat["tokens"]})).json()["prompt"]
    assert whole == "<|start|>user\nHi<|end|><|start|>assistant\n"
    assert (await http.post("/tokenize", json={})).json()["error"]["param"] == "prompt"
    assert (await http.post("/detokenize", json={"tokens": [999]})).json()["error"]["param"] == "tokens"


async def test_version_page_and_request_ids(server):
    assert (await server.http.get("/version")).json() == {"version": __version__}
    assert (await server.http.get("/")).status_code == 200
    answer = await server.http.post("/v1/completions", json=ASK, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    named = await server.http.post("/v1/completions", json={**ASK, "request_id": "mine-2"})
    assert "mine-2" in named.json()["id"]


async def test_stages_of_a_request_are_measured(server):
    server.cluster.first_token_s = server.cluster.pace_s = 0.01
    await server.http.post("/v1/completions", json={**ASK, "max_tokens": 5})
    samples = {
        sample.name.removeprefix("mortice:"): sample.value
        for family in text_string_to_metric_families((await server.http.get("/metrics")).text)
        for sample in family.samples
    }
    stages = [
        samples[f"request_{stage}_time_seconds_sum"] for stage in ("queue", "prefill", "transfer", "decode")
    ]
    assert sum(stages) == pytest.approx(samples["e2e_request_latency_seconds_sum"])
    assert samples["request_prefill_time_seconds_sum"] >= 0.009
    assert samples["request_decode_time_seconds_sum"] >= 0.039
    assert samples["time_to_first_token_seconds_sum"] <= samples["e2e_request_latency_seconds_sum"]
