"""Engines on the fake model, without processes or sockets; sandboxes of a test's own."""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from mortice.engine.assemble import assemble, layout_of
from mortice.engine.core import Engine
from mortice.models.fake import FakeModel
from mortice.sandbox import Sandboxes
from mortice.sandbox.images import find_image, find_program
from mortice.specs.deployment import Deployment, EngineLimits, Speculation, Transfer
from mortice.specs.messages import Deltas, FromWorker, Prefilled, Submit
from mortice.specs.request import Delta, Request
from mortice.specs.sampling import SamplingParams
from mortice.transport.pool import PrivatePool, SharedPool
from mortice.transport.shm import ShmTransport

settings.register_profile("mortice", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("mortice")


@dataclass
class Rig:
    """An engine and everything it has said."""

    engine: Engine
    pool: SharedPool | PrivatePool
    close: Callable[[], None]
    said: list[FromWorker] = field(default_factory=list)

    def submit(self, message: Submit) -> None:
        self.said += self.engine.submit(message)

    def turn(self) -> list[FromWorker]:
        """One turn of the loop."""
        made = self.engine.collect()
        _, stepped = self.engine.step()
        made += stepped
        self.said += made
        return made

    def run(self, max_turns: int = 5000) -> None:
        """Until nothing is left to do."""
        for _ in range(max_turns):
            self.turn()
            if not self.engine.has_work and not self.engine.scheduler.fetching:
                return
            if not self.engine.scheduler.running:
                time.sleep(0.0005)  # a transfer runs on another thread
        raise AssertionError("the engine does not come to rest")

    def deltas(self, request_id: str, index: int = 0) -> list[Delta]:
        found = []
        for message in self.said:
            deltas = message.deltas if isinstance(message, Deltas) else ()
            deltas = message.first if isinstance(message, Prefilled) else deltas
            found += [d for d in deltas if d.request_id == request_id and d.index == index]
        return found

    def tokens(self, request_id: str, index: int = 0) -> list[int]:
        return [t for d in self.deltas(request_id, index) for t in d.token_ids]

    def finish(self, request_id: str, index: int = 0) -> str | None:
        deltas = self.deltas(request_id, index)
        return deltas[-1].finish_reason if deltas else None


def make_request(request_id: str, prompt: list[int], *, n: int = 1, **sampling: Any) -> Request:
    sampling = {"max_tokens": 8, "temperature": 0.0} | sampling
    return Request(id=request_id, prompt_token_ids=prompt, sampling=SamplingParams(**sampling), n=n)


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    torch.set_num_threads(1)
    rigs: list[Rig] = []

    def make(
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        token_budget: int = 64,
        max_num_seqs: int = 16,
        model: Any = None,
        name: str = "worker-0.1",
        transfer: Transfer | None = None,
        speculation: Speculation | None = None,
        clock: Callable[[], float] | None = None,
        device: str = "cpu",
    ) -> Rig:
        model = model or FakeModel()
        deployment = Deployment(
            model="fake:",
            limits=EngineLimits(block_size=block_size, token_budget=token_budget, max_num_seqs=max_num_seqs),
            transfer=transfer or Transfer(),
            speculation=speculation,
        )
        layout = layout_of(model, block_size=block_size, dtype="float32", identity="fake")
        pool = SharedPool(layout, num_blocks, checksum=deployment.transfer.checksum)
        transport = ShmTransport(pool)
        engine = assemble(
            model,
            layout,
            pool,
            transport,
            deployment,
            worker_id=name,
            eos_token_ids=list(FakeModel.eos_token_ids),
            max_context=num_blocks * block_size,
            load_tokenizer=lambda: None,
            wake=lambda: None,
            device=torch.device(device),
            **({"clock": clock} if clock else {}),
        )

        def close() -> None:
            transport.close()
            pool.close()

        rig = Rig(engine, pool, close)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def needs_sandboxes() -> None:
    """Skips where there is nothing to run a guest with."""
    if os.geteuid() != 0 or find_program("runsc") is None or find_image("base") is None:
        pytest.skip(
            "needs root and what `mortice sandbox setup` installs (runsc, a guest's root file system)"
        )


@pytest.fixture
async def own_boxes(needs_sandboxes: None, tmp_path: Path) -> AsyncIterator[Sandboxes]:
    """Sandboxes in a home that this test alone uses."""
    async with Sandboxes(tmp_path / "boxes") as made:
        yield made


@pytest.fixture(name="make_request")
def make_request_fixture() -> Callable[..., Request]:
    return make_request
