"""Greedy text in float32 is that of transformers on every path a request can take through a live cluster."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mortice.cluster.live import LiveCluster
from mortice.models import store
from mortice.specs.deployment import Deployment, EngineLimits, Speculation, Transfer
from mortice.specs.errors import EngineError, MorticeError
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams

NUM_TOKENS = 40
VOCABULARY = 211
KINDS = ("llama", "qwen3")
LENGTHS = (90, 33, 70, 1, 48, 17)


def make_model(folder: Path, kind: str, seed: int = 0) -> torch.nn.Module:
    """A small model with weights large enough that no two tokens are nearly as likely."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        head_dim=16,
        max_position_embeddings=256,
        num_key_value_heads=2,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.1) + ("norm" in name))
    model.save_pretrained(folder)
    return model


def greedy(model: torch.nn.Module, prompt: list[int], count: int = NUM_TOKENS) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()


def make_prompts(seed: int = 3) -> list[list[int]]:
    chooser = random.Random(seed)
    prompts = [[chooser.randrange(3, VOCABULARY) for _ in range(length)] for length in LENGTHS]
    prompts.append(prompts[0][:8] * 9)  # repeats itself, so that n-grams have something to find
    return prompts


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """By kind: the folder of a model, prompts, and transformers' text after each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        model = make_model(folder, kind)
        found[kind] = folder, [(prompt, greedy(model, prompt)) for prompt in make_prompts()]
    yield found
    torch.set_num_threads(threads)


@asynccontextmanager
async def cluster(
    folder: Path,
    prefill: int = 1,
    decode: int = 1,
    *,
    limits: dict[str, Any] | None = None,
    transfer: dict[str, Any] | None = None,
    draft_model_path: Path | None = None,
    **more: Any,
) -> AsyncIterator[LiveCluster]:
    deployment = Deployment(
        model=str(folder),
        dtype="float32",
        prefill=prefill,
        decode=decode,
        local_prefill_tokens=0,
        limits=EngineLimits(**{"block_size": 8, "max_num_seqs": 16, "kv_bytes": 4 << 20} | (limits or {})),
        transfer=Transfer(**transfer or {}),
        **more,
    )
    drafter = str(draft_model_path) if draft_model_path else None
    live = LiveCluster(deployment, model_path=str(folder), draft_model_path=drafter, threads=1)
    try:
        await live.start()
        yield live
        assert live.num_in_flight() == 0
        for worker in (await at_rest(live)).values():
            assert worker["num_free_blocks"] == worker["num_blocks"]
    finally:
        await live.stop(0)


async def at_rest(live: LiveCluster) -> dict[str, dict]:
    for _ in range(100):
        answers = await live.call("check_integrity", {})
        if all(a["num_sequences"] == a["num_leases"] == a["num_fetching"] == 0 for a in answers.values()):
            return answers
        await asyncio.sleep(0.05)
    raise AssertionError(f"not at rest: {answers}")


async def counted(live: LiveCluster, name: str) -> float:
    """A counter summed over the workers, once the heartbeat that tells it has come."""
    await at_rest(live)
    for _ in range(150):
        total = sum(w.stats.counters.get(name, 0) for w in live.workers() if w.stats is not None)
        if total:
            return total
        await asyncio.sleep(0.05)
    return 0


async def ask(
    live: LiveCluster, name: str, prompt: list[int], count: int = NUM_TOKENS, n: int = 1
) -> tuple[list[list[int]], int]:
    """The text of each sequence, and how many prompt tokens came from the cache."""
    sampling = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    texts: list[list[int]] = [[] for _ in range(n)]
    num_cached = 0
    async for delta in live.generate(Request(id=name, prompt_token_ids=prompt, sampling=sampling, n=n)):
        if delta.finish_reason == "error":
            raise EngineError(delta.error or "")
        texts[delta.index] += delta.token_ids
        num_cached = max(num_cached, delta.num_cached_tokens)
    return texts, num_cached


async def check_all(live: LiveCluster, cases: list[tuple[list[int], list[int]]], tag: str = "r") -> None:
    """All at once, so that steps mix prompts and answers."""
    answers = await asyncio.gather(*(ask(live, f"{tag}{i}", prompt) for i, (prompt, _) in enumerate(cases)))
    for (_, expected), (texts, _) in zip(cases, answers, strict=True):
        assert texts == [expected]


PATHS: dict[str, dict[str, Any]] = {
    "colocated": {"prefill": 0},
    "map": {},
    "pull": {"transfer": {"mode": "pull"}},
    "push": {"transfer": {"mode": "push"}},
    "tcp": {"transfer": {"transport": "tcp", "checksum": "full"}},
    "tcp-push": {"transfer": {"transport": "tcp", "mode": "push"}},
    "chunked": {"prefill": 0, "limits": {"token_budget": 8, "max_num_seqs": 8}},
    "chunked-map": {"limits": {"token_budget": 8, "max_num_seqs": 8}},
    "deterministic": {"deterministic": True},
}
COLOCATED = ("colocated", "chunked")
COPIED = ("pull", "push", "tcp", "tcp-push")


@pytest.mark.parametrize(
    ("path", "kind"), [(path, "qwen3" if path in ("push", "chunked") else "llama") for path in PATHS]
)
async def test_each_path(small, path, kind):
    folder, cases = small[kind]
    async with cluster(folder, **PATHS[path]) as live:
        await check_all(live, cases)
        answers = (await at_rest(live)).values()
        copied = sum(a["num_received"] for a in answers)
        assert copied + sum(a["num_in_place"] for a in answers) == (0 if path in COLOCATED else len(cases))
        assert bool(copied) == (path in COPIED)


@pytest.mark.parametrize("prefill", [0, 1])
async def test_prefix_hits_and_several_answers(small, prefill):
    folder, cases = small["llama"]
    prompt, expected = cases[0]
    async with cluster(folder, prefill) as live:
        assert await ask(live, "cold", prompt) == ([expected], 0)
        texts, num_cached = await ask(live, "warm", prompt)
        assert texts == [expected]
        assert num_cached >= 80
        texts, num_cached = await ask(live, "several", prompt, n=3)
        assert texts == [expected] * 3
        other = cases[2][0]
        mixed, _ = await ask(live, "half", [*prompt[:40], *other])  # leaves the cached prefix half-way
        again, _ = await ask(live, "half-again", [*prompt[:40], *other])
        assert mixed == again
        (longer, _), (several, _) = await asyncio.gather(
            ask(live, "grown", [*prompt, *expected[:20]], NUM_TOKENS - 20), ask(live, "n", other, n=4)
        )
        assert longer == [expected[20:]]  # the answer became part of a prompt, as in a chat
        assert several == [cases[2][1]] * 4


@pytest.mark.parametrize("prefill", [0, 1])
async def test_preemption(small, prefill):
    """Blocks for one and a half of the sequences that run."""
    folder, cases = small["llama"]
    block_bytes = 8 * 3 * 2 * 2 * 16 * 4  # tokens, layers, K and V, heads, width, float32
    async with cluster(folder, prefill, limits={"kv_bytes": 26 * block_bytes, "token_budget": 64}) as live:
        await check_all(live, cases)
        assert await counted(live, "num_preemptions") > 0


@pytest.mark.parametrize("method", ["ngram", "same-draft", "other-draft"])
@pytest.mark.parametrize("prefill", [0, 1])
async def test_speculation(small, tmp_path, method, prefill):
    folder, cases = small["llama"]
    drafter = None
    if method != "ngram":
        drafter = folder if method == "same-draft" else tmp_path
        make_model(tmp_path, "llama", seed=1)
    speculation = Speculation(
        method="draft" if drafter else "ngram", draft_model=str(drafter) if drafter else None, max_draft=3
    )
    async with cluster(folder, prefill, speculation=speculation, draft_model_path=drafter) as live:
        await check_all(live, cases)
        assert await counted(live, "spec_proposed") > 0
        if method == "same-draft":
            assert await counted(live, "spec_accepted") > NUM_TOKENS


@pytest.mark.parametrize("role", ["decode", "prefill"])
@pytest.mark.parametrize("mode", ["map", "pull", "push"])
async def test_recovery(small, role, mode):
    """A worker is killed while some streams are decoded and others still prefilled."""
    folder, cases = small["llama"]
    async with cluster(folder, transfer={"mode": mode}, limits={"token_budget": 16}) as live:
        under_way = asyncio.Event()

        async def follow(i: int, prompt: list[int]) -> list[int]:
            sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
            text: list[int] = []
            request = Request(id=f"r{i}", prompt_token_ids=prompt, sampling=sampling)
            async for delta in live.generate(request):
                text += delta.token_ids
                if len(text) >= 5:
                    under_way.set()
            return text

        streams = [asyncio.create_task(follow(i, prompt)) for i, (prompt, _) in enumerate(cases)]
        await under_way.wait()
        victim = next(w for w in live.workers() if w.role == role)
        assert not any(stream.done() for stream in streams)
        os.kill(victim.pid, signal.SIGKILL)
        assert await asyncio.gather(*streams) == [expected for _, expected in cases]
        # The death is noticed a moment after it happened: wait for the next life, then for it to serve.
        while victim.id in {w.id for w in live.workers()} or any(
            w.state != "running" for w in live.workers()
        ):
            await asyncio.sleep(0.05)
        assert victim.id not in {w.id for w in live.workers()}
        await check_all(live, cases, "after")


REAL_PROMPTS = (
    "The capital of France is",
    "<|im_start|>user\nName three colours of the rainbow and say one thing about each of them.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
)


@pytest.mark.slow
async def test_smollm2():
    """The real model, its GGUF file read by transformers, through prefill and decode workers with all that bends a
    path: chunks, drafts, several answers.
    """
    try:
        folder = store.pull("smollm2", print)
    except MorticeError as error:
        pytest.skip(f"no SmolLM2 here: {error}")
    pytest.importorskip("accelerate")
    from transformers import AutoTokenizer

    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    prompts = [tokenizer(text)["input_ids"] for text in REAL_PROMPTS]
    cases = [(prompt, greedy(model, prompt, 24)) for prompt in prompts]
    del model
    limits = {"token_budget": 16, "block_size": 16, "kv_bytes": 64 << 20}
    async with cluster(folder, limits=limits, speculation=Speculation()) as live:
        answers = await asyncio.gather(
            *(ask(live, f"r{i}", prompt, 24, n=2) for i, (prompt, _) in enumerate(cases))
        )
        assert [texts for texts, _ in answers] == [[expected] * 2 for _, expected in cases]
