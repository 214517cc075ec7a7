"""The worker process: loads the model of its configuration and runs the loop. The nursery forks it, or it is started by
itself with the configuration on standard input.
"""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
import zmq

from mortice.engine.admin import Admin
from mortice.engine.assemble import assemble, layout_of
from mortice.engine.config import WorkerConfig
from mortice.engine.draft import ModelDrafter
from mortice.engine.loop import Loop, Waker
from mortice.engine.parenthood import die_with_parent
from mortice.models.fake import FAKE_SCHEME, FAKE_TIMED, FakeModel, TimedFakeModel
from mortice.models.load import load_model
from mortice.specs.deployment import Deployment
from mortice.specs.errors import EngineError, MorticeError, RequestError
from mortice.specs.kv import KVLayout
from mortice.specs.messages import Hello, Reply, encode
from mortice.text.load import load_text_model
from mortice.transport.choose import open_pool, open_transport
from mortice.transport.curve import arm_client
from mortice.transport.give_back import give_back

log = logging.getLogger("mortice.engine")


def main() -> None:
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerConfig)
    die_with_parent()
    run(config)


def run(config: WorkerConfig) -> None:
    """Be this worker until the cluster says that it is enough. Exits with 2 if it cannot start, having said why."""
    logging.basicConfig(
        level=config.log_level, format=f"%(asctime)s %(levelname)s {config.worker_id} %(message)s"
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the cluster's to handle: it drains first
    socket: zmq.Socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.IDENTITY, config.worker_id.encode())
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    if config.join_token:
        arm_client(socket, config.join_token)
    socket.connect(config.endpoint)
    try:
        loop, close = build(config, socket)
    except Exception as error:
        if not isinstance(error, MorticeError):
            log.exception("the worker cannot start")
        known = error if isinstance(error, MorticeError) else EngineError(f"{type(error).__name__}: {error}")
        socket.send(encode(Reply(id=0, error=known.message, status=known.status)))
        socket.close()
        zmq.Context.instance().term()
        sys.exit(2)
    gc.collect()
    gc.freeze()
    try:
        loop.run()
    finally:
        close()


def build(config: WorkerConfig, socket: zmq.Socket) -> tuple[Loop, Callable[[], None]]:
    """Everything a worker holds, and what gives it back. Raises MorticeError for what the user can mend."""
    clock = _StageClock()
    deployment = config.deployment
    torch.set_num_threads(config.threads)
    device = torch.device(deployment.device if deployment.device != "auto" else _best_device())
    clock.mark("import")
    model, dtype, max_context, eos = model_of(config, device)
    drafter = None
    if config.draft_model_path is not None:
        drafter = ModelDrafter.load(config.draft_model_path, dtype=dtype, vocab_size=model.vocab_size)
    clock.mark("weights")
    layout = layout_of(model, block_size=deployment.limits.block_size, dtype=dtype, identity=deployment.model)
    kv_bytes = deployment.limits.kv_bytes or default_kv_bytes(layout, max_context, deployment, device)
    num_blocks = kv_bytes // layout.block_bytes
    if num_blocks < 2:
        raise RequestError(
            f"{kv_bytes} bytes are less than two blocks of {layout.block_bytes} bytes",
            param="limits.kv_bytes",
        )
    transfer = deployment.transfer
    memory = open_pool(
        transfer.transport,
        layout,
        num_blocks,
        prefix=config.shm_prefix,
        checksum=transfer.checksum,
        report=log.warning,
    )
    waker = Waker()
    transport = open_transport(
        transfer.transport,
        memory,
        token=config.token,
        listen=transfer.listen,
        encrypt=transfer.encrypt,
        report=log.info,
    )
    max_context = min(
        max_context, deployment.limits.max_context or max_context, num_blocks * layout.block_size
    )
    engine = assemble(
        model,
        layout,
        memory,
        transport,
        deployment,
        worker_id=config.worker_id,
        eos_token_ids=eos,
        max_context=max_context,
        load_tokenizer=lambda: load_text_model(config.model_path).llguidance_tokenizer(),
        wake=waker.wake,
        device=device,
        drafter=drafter,
    )
    admin = Admin(engine, free_memory=lambda: give_back(memory.blocks), model_path=config.model_path)
    for name, folder in deployment.adapters.items():
        admin.load_adapter(name, folder)
    clock.mark("cache")
    hello = Hello(
        worker_id=config.worker_id,
        pid=os.getpid(),
        layout=layout,
        pool=memory.address,
        max_context=max_context,
        vocab_size=model.vocab_size,
        eos_token_ids=eos,
        weight_version=engine.weight_version,
        startup_s=clock.stages,
    )

    def close() -> None:
        transport.close()
        memory.close()
        engine.ledger.close()

    return Loop(engine, admin, socket, waker, hello, transfer.heartbeat_s), close


def model_of(config: WorkerConfig, device: torch.device) -> tuple[Any, str, int, list[int]]:
    """The model, its dtype, the longest context and the tokens that end a text."""
    deployment = config.deployment
    if config.model_path.startswith(FAKE_SCHEME):
        fake = FakeModel()
        if config.model_path == FAKE_TIMED:
            times = deployment.control.decode_times
            if times is None or times != deployment.control.prefill_times:
                raise RequestError(
                    f"{FAKE_TIMED} takes its time from the document: give cluster.prefill_times and the same decode_times",
                    param="cluster.decode_times",
                )
            fake = TimedFakeModel(times)
        return fake, "float32", fake.max_context, list(fake.eos_token_ids)
    dtype = deployment.dtype or default_dtype(device)
    model = load_model(
        config.model_path, dtype=getattr(torch, dtype), quantize=deployment.quantize, device=str(device)
    )
    return model, dtype, model.spec.max_context, list(model.spec.eos_token_ids)


def default_kv_bytes(layout: KVLayout, max_context: int, deployment: Deployment, device: torch.device) -> int:
    """On a CPU room for one and a half contexts of full length, but no more than the worker's share of a quarter of memory:
    it computes too slowly to use more. On a GPU most of what the weights left, as far as the host can mirror it."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    share = free // (4 * deployment.most_workers)
    if device.type == "cuda":
        return min(int(torch.cuda.mem_get_info()[0] * 0.85), share)
    return min(layout.token_bytes * max_context * 3 // 2, share)


class _StageClock:
    """Seconds of each stage of the start, the first counted from the start of the process."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            started = float(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            self._last = time.monotonic() - (float(uptime.read().split()[0]) - started)

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self.stages[stage] = round(now - self._last, 3)
        self._last = now


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: torch.device) -> str:
    """bfloat16 where the device multiplies it at least as fast as float32."""
    if device.type == "cuda":
        return "bfloat16"
    fast = (
        torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return "bfloat16" if fast else "float32"


if __name__ == "__main__":
    main()
