"""How long this worker's steps take: a few prompts and batches of its own making, run through the very engine that serves.

For decisions that hang on step times (docs/sched.md, Setup). The worker must be idle: what it measures it must not share.
"""

import random
import time
from collections.abc import Iterator

from mortice.engine.core import Engine
from mortice.specs.errors import WrongState
from mortice.specs.messages import Abort, Submit
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams

PROMPTS = (16, 32, 64, 128, 256, 512, 1024)  # tokens of one prompt alone
BATCHES = (1, 2, 4, 8, 16)
CONTEXTS = (32, 256, 1024)
REPEATS = 2  # of each prompt
STEPS = 4  # of each batch
LIMIT_S = 6.0  # the largest sizes are left out where a worker is slow
SALT = "measure"  # of the prefix cache: nobody's request finds these blocks

Row = tuple[float, int, int, int, int]  # seconds, prompt tokens, their squares, sequences, context tokens


def measure(engine: Engine) -> list[Row]:
    """One row a size of step, the fastest of its kind: what else the machine did meanwhile is not the worker's time.
    Raises WrongState while the engine has work."""
    if engine.has_work or engine.scheduler.fetching:
        raise WrongState("cannot measure a worker that has requests")
    ends_s = time.monotonic() + LIMIT_S
    rng = random.Random(0)
    rows: list[Row] = []
    counters = dict(engine.counters)
    room = engine.scheduler.block_size * engine.pool.num_blocks
    try:
        for _ in _prompt(engine, rng, PROMPTS[0], 1, 1):
            pass  # warms up
        for length in PROMPTS:
            if time.monotonic() < ends_s and length + 1 < min(room, engine.max_context):
                runs = [[_row(engine) for _ in _prompt(engine, rng, length, 1, 0)] for _ in range(REPEATS)]
                rows += [min(chunk) for chunk in zip(*runs, strict=True)]
        ends_s = max(ends_s, time.monotonic() + LIMIT_S / 2)
        for context in CONTEXTS:
            for batch in BATCHES:
                fits = batch * (context + STEPS + engine.scheduler.block_size) < room
                short = context + STEPS + 2 < engine.max_context
                if fits and short and batch <= engine.scheduler.max_num_seqs and time.monotonic() < ends_s:
                    steps = [_row(engine) for _ in _prompt(engine, rng, context, batch, STEPS)]
                    rows += sorted(row for row in steps if row[3] == batch and not row[1])[:1]
    finally:
        engine.pool.forget_all()
        engine.counters.update(counters)  # nobody asked for these tokens
    return rows


def _prompt(engine: Engine, rng: random.Random, length: int, batch: int, after: int) -> Iterator[None]:
    """Run `batch` prompts of random tokens and `after` more steps of all of them; yields after each step."""
    names = [f"measure-{rng.getrandbits(64):x}" for _ in range(batch)]
    low, high = 1, max(2, engine.runner.model.vocab_size - 1)
    for name in names:
        prompt = [rng.randrange(low, high) for _ in range(length)]
        # Every sequence outlives the others' prompts: it is aborted at the end, not counted out.
        params = SamplingParams(max_tokens=1 if not after else 1 << 20, temperature=0.0, ignore_eos=True)
        request = Request(id=name, prompt_token_ids=prompt, sampling=params, cache_salt=SALT)
        engine.submit(Submit(request=request))
    together = 0
    try:
        while engine.has_work and together < max(1, after):
            if not engine.step()[0]:
                break
            yield
            together += not after or engine.ledger.last[0].sequences == batch
    finally:
        engine.abort(Abort(names))


def _row(engine: Engine) -> Row:
    work, seconds = engine.ledger.last
    return (seconds, work.prompt_tokens, work.prompt_squares, work.sequences, work.context_tokens)
