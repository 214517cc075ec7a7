"""Whole runs against a scripted endpoint: what is sent, what is left out, what the result says of itself."""

import asyncio
from pathlib import Path

import pytest

from mortice.bench.goodput import GoodputSearch, find_goodput
from mortice.bench.options import BenchOptions
from mortice.bench.run import Bench
from mortice.bench.scripted import Script, ScriptedServer
from mortice.specs.errors import NotFound, RequestError, Unavailable
from mortice.specs.slo import SLO
from mortice.specs.workload import Clip

DATA = Path(__file__).parents[1] / "data"


async def run(server, **options):
    job = Bench(BenchOptions(base_url=server.base_url, **options))
    await job.prepare()
    num_before = len(server.bodies)
    result, loaded = await job.run()
    job.close()
    return result, loaded, server.bodies[num_before:]


def refusing(*names):
    """A server that has never heard of these fields."""

    def script(index, body):
        for name in names:
            if name in body:
                return Script(status=400, message=f"unknown field {name}")
        return Script()

    return script


async def test_a_closed_loop_of_honest_prompts():
    async with ScriptedServer() as server:
        result, _, bodies = await run(server, num_prompts=12, input_len=40, output_len=5, concurrency=3)
    assert (result["num_issued"], result["num_completed"], result["num_failed"]) == (12, 12, 0)
    assert result["model"] == "scripted"
    assert result["peak_concurrency"] == 3
    assert {len(body["prompt"].split()) for body in bodies} == {40}
    assert len({body["prompt"] for body in bodies}) == 12
    assert all(body["max_tokens"] == 5 and body["ignore_eos"] for body in bodies)
    assert result["input_tokens"]["min"] == result["input_tokens"]["max"] == 40
    assert result["output_tokens"]["mean"] == 5
    assert result["request"]["ignore_eos"] == "sent"
    for metric in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
        assert {"mean", "p50", "p90", "p99"} <= set(result[metric])
    assert result["client"]["cpu_s"] > 0
    assert result["server"] is None
    assert result["slo"] is None


async def test_warm_up_is_left_out_and_its_prompts_are_not_measured():
    async with ScriptedServer() as server:
        job = Bench(BenchOptions(base_url=server.base_url, num_prompts=4, warmup=3))
        await job.prepare()
        warm = {body["prompt"] for body in server.bodies}
        result, _ = await job.run()
        measured = {body["prompt"] for body in server.bodies[-4:]}
        job.close()
    assert result["num_issued"] == 4
    assert not warm & measured


async def test_the_same_seed_sends_the_same_requests():
    seen = []
    for seed in (1, 1, 2):
        async with ScriptedServer() as server:
            _, _, bodies = await run(server, num_prompts=3, seed=seed, concurrency=1)
        seen.append([body["prompt"] for body in bodies])
    assert seen[0] == seen[1] != seen[2]


async def test_the_chat_api_counts_its_template_in():
    async with ScriptedServer() as server:
        result, _, bodies = await run(server, api="chat", num_prompts=2, input_len=30)
    assert result["input_tokens"]["mean"] == 30
    assert bodies[0]["messages"][0]["role"] == "user"


async def test_token_id_prompts():
    async with ScriptedServer() as server:
        result, _, bodies = await run(server, prompts="token-ids", num_prompts=2, input_len=30)
    assert [len(body["prompt"]) for body in bodies] == [30, 30]
    assert result["request"]["prompts"]["source"] == "token-ids"


@pytest.mark.parametrize(
    ("api", "names", "sent"),
    [
        ("completions", ("ignore_eos",), {"max_tokens", "stream_options"}),
        ("completions", ("ignore_eos", "stream_options"), {"max_tokens"}),
        ("chat", ("max_tokens",), {"max_completion_tokens", "ignore_eos"}),
    ],
)
async def test_refused_fields_are_given_up_and_named(api, names, sent):
    async with ScriptedServer(script=refusing(*names)) as server:
        result, _, bodies = await run(server, api=api, num_prompts=2)
    assert result["num_failed"] == 0
    assert set(result["request"]["refused_fields"]) == set(names)
    assert sent <= set(bodies[0])
    assert not set(names) & set(bodies[0])
    if "ignore_eos" in names:
        assert result["request"]["ignore_eos"] == "refused by the server"
        assert "the server refused ignore_eos" in result["notes"]
    if "stream_options" in names:
        assert result["num_without_usage"] == 2
        assert any("without usage" in note for note in result["notes"])


async def test_tokenize_gives_the_length_where_there_is_no_usage():
    async with ScriptedServer(script=lambda i, body: Script(usage=False), tokenize=True) as server:
        result, _, bodies = await run(server, num_prompts=2, input_len=33)
    assert result["request"]["prompts"]["counted_by"] == "tokenize"
    assert len(bodies[0]["prompt"].split()) == 33


async def test_failures_are_counted_with_their_reasons():
    def script(index, body):
        if index < 6:  # the probes and the warm-up
            return Script()
        return [
            Script(),
            Script(status=429),
            Script(ending="cut", stop_after=1),
            Script(ending="error event"),
        ][index % 4]

    async with ScriptedServer(script=script) as server:
        result, _, _ = await run(
            server, num_prompts=8, concurrency=1, slo=SLO(ttft_ms=60_000), max_duration_s=60
        )
    assert result["num_issued"] == 8
    assert result["failures"] == {"status 429": 2, "truncated": 2, "error event": 2}
    assert result["slo"]["attainment"] == 0.25


async def test_answers_shorter_than_asked_are_noted():
    async with ScriptedServer(script=lambda i, body: Script(num_tokens=2)) as server:
        result, _, _ = await run(server, num_prompts=3, output_len=9)
    assert result["num_cut_short"] == 3
    assert any("ended before the output length" in note for note in result["notes"])


async def test_an_open_loop_states_its_arrivals():
    async with ScriptedServer() as server:
        result, loaded, _ = await run(server, num_prompts=6, rate=500.0, arrival="gamma", cv=2.0, seed=4)
    assert result["workload"] == {
        "loop": "open", "seed": 4, "num_warmup": 2, "num_prompts": 6, "input_len": 128, "output_len": 64,
        "arrival": "gamma", "rate": 500.0, "cv": 2.0,
    }  # fmt: skip
    assert result["send_lag_ms"]["num"] == 6
    assert all(t.sent_s >= t.due_s for t in loaded.timelines)


async def test_a_mooncake_replay_shares_prefixes():
    async with ScriptedServer() as server:
        result, _, bodies = await run(
            server, trace=DATA / "mooncake_conversation_head.jsonl", trace_scale=1000.0, jitter=True,
            clip=Clip(max_input=1200, max_output=4), num_prompts=5,
        )  # fmt: skip
    work = result["workload"]
    assert (work["format"], work["jitter_s"], work["prefix_block_tokens"]) == ("mooncake", 3.0, 512)
    assert work["clip"] == {"max_input": 1200, "max_output": 4, "rule": "truncate", "num_rows": 24}
    prompts = [body["prompt"].split() for body in bodies]
    assert [len(prompt) for prompt in prompts] == [1200] * 5
    assert len({tuple(prompt[:513]) for prompt in prompts}) == 1  # all rows of the cut begin with block 0
    assert len({tuple(prompt[:700]) for prompt in prompts}) == 5


async def test_an_azure_replay_keeps_lengths():
    async with ScriptedServer() as server:
        result, loaded, _ = await run(
            server, trace=DATA / "azure2023_conv_head.csv", trace_scale=500.0, trace_duration_s=12.0,
            clip=Clip(max_output=20),
        )  # fmt: skip
    assert result["num_failed"] == 0
    assert [t.prompt_len for t in loaded.timelines][:2] == [374, 396]
    assert [t.prompt_tokens for t in loaded.timelines] == [t.prompt_len for t in loaded.timelines]
    assert result["workload"]["trace"] == "azure2023_conv_head.csv"


async def test_clients_hang_up_when_the_trace_says_so(tmp_path):
    """The answer of the first row would take minutes; its server learns that nobody reads it any more."""
    trace = tmp_path / "T.jsonl"
    row = '{"timestamp": 0, "input_length": 8, "output_length": %d%s}\n'
    trace.write_text(row % (20_000, ', "leaves_after": 200') + row % (3, ""))

    def script(index, body):
        return Script(gap_s=0.01 if body["max_tokens"] > 3 else 0.0)

    async with ScriptedServer(script=script) as server:
        result, loaded, _ = await run(server, trace=trace, warmup=0, slo=SLO(ttft_ms=60_000))
        while not server.closed_early:
            await asyncio.sleep(0.01)
    assert result["failures"] == {"hung up": 1}
    assert "0.2 s" in result["failure_examples"]["hung up"]
    assert result["slo"]["attainment"] == 0.5
    assert loaded.timelines[0].ended_s - loaded.timelines[0].sent_s >= 0.2


async def test_time_can_run_out():
    async with ScriptedServer(script=lambda i, body: Script(first_s=0.05)) as server:
        result, _, _ = await run(server, num_prompts=500, concurrency=1, warmup=0, max_duration_s=0.1)
    assert result["stopped_early"]
    assert 0 < result["num_issued"] < 500
    assert any("--max-duration" in note for note in result["notes"])


async def test_server_cpu_comes_from_its_metrics():
    seconds = iter([(1.0, 2.0), (1.5, 2.25)])

    def metrics():
        one, two = next(seconds)
        return (
            f'process_cpu_seconds_total{{worker="0"}} {one}\nprocess_cpu_seconds_total{{worker="1"}} {two}\n'
        )

    async with ScriptedServer(metrics=metrics) as server:
        result, _, _ = await run(server, num_prompts=2)
    assert result["server"]["cpu_s"] == pytest.approx(0.75)


async def test_goodput_finds_where_a_scripted_server_gives_up():
    """Requests that arrive sooner than 20 ms after the last one are refused, so attainment falls with the
    rate."""
    last = [0.0]

    def script(index, body):
        now = asyncio.get_running_loop().time()
        soon = now - last[0] < 0.02
        last[0] = now
        return Script(status=429) if soon and body["max_tokens"] == 3 else Script()

    async with ScriptedServer(script=script) as server:
        job = Bench(
            BenchOptions(
                base_url=server.base_url, num_prompts=20, output_len=3, rate=0.2, warmup=0,
                slo=SLO(ttft_ms=60_000, target=0.5), input_len=8,
            )
        )  # fmt: skip
        await job.prepare()
        found = await find_goodput(job, GoodputSearch(0.5, max_probes=3), start_rate=2000.0, num_gpus=2)
        job.close()
    goodput = found["goodput"]
    assert found["kind"] == "goodput"
    assert goodput["num_gpus"] == 2
    assert goodput["first_failed_rate"] is not None
    assert goodput["goodput_per_gpu"] == goodput["sustained_rate"] / 2
    assert len(found["runs"]) == len(goodput["probes"])
    assert found["workload"]["seed"] == 0


async def test_nobody_home():
    job = Bench(BenchOptions(base_url="http://127.0.0.1:1/v1", model="m"))
    with pytest.raises(Unavailable, match="no server at"):
        await job.prepare()


@pytest.mark.parametrize(
    ("status", "error", "param"),
    [(401, RequestError, "--api-key-env"), (404, NotFound, "--model"), (400, RequestError, "--model")],
)
async def test_a_refusal_before_the_run_names_the_option(status, error, param):
    async with ScriptedServer(script=lambda i, body: Script(status=status)) as server:
        job = Bench(BenchOptions(base_url=server.base_url))
        with pytest.raises(error, match="scripted refusal") as raised:
            await job.prepare()
        job.close()
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"rate": 0.0}, "--rate"),
        ({"rate": 1.0, "concurrency": 2}, "--concurrency"),
        ({"arrival": "poisson"}, "--arrival"),
        ({"rate": 1.0, "cv": 2.0}, "--cv"),
        ({"rate": 1.0, "arrival": "gamma"}, "--cv"),
        ({"num_prompts": 0}, "--num-prompts"),
        ({"input_len": 0}, "--input-len"),
        ({"warmup": -1}, "--warmup"),
        ({"timeout_s": 0.0}, "--timeout"),
        ({"max_duration_s": float("inf")}, "--max-duration"),
        ({"trace_scale": 2.0}, "--trace-scale"),
        ({"jitter": True}, "--jitter"),
        ({"clip": Clip(max_input=5)}, "--max-input"),
        ({"trace": Path("t"), "rate": 1.0}, "--rate"),
        ({"trace": Path("t")}, "--trace"),
        ({"trace": DATA / "azure2023_conv_head.csv", "jitter": True}, "--jitter"),
        ({"api": "chat", "prompts": "token-ids"}, "--prompts"),
        ({"slo": SLO(ttft_ms=-1)}, "--slo-ttft-ms"),
        ({"slo": SLO(target=1.5)}, "--target"),
    ],
)
def test_bad_options_are_named(options, param):
    with pytest.raises(RequestError) as raised:
        Bench(BenchOptions(base_url="http://127.0.0.1:1/v1", **options))
    assert raised.value.param == param
    assert param in raised.value.message
