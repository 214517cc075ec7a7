"""The deployment document: which model, cut how, on how many workers, with which limits.

`mortice plan` writes it, `mortice serve --deployment FILE` and `mortice sim` read it; command-line options are
overrides of its fields. YAML on disk, the same fields in the same words.
"""

from pathlib import Path
from typing import Literal

import msgspec
import yaml

from mortice.specs.checked import checked
from mortice.specs.cluster import ClusterSpec
from mortice.specs.errors import RequestError

Dtype = Literal["float32", "bfloat16", "float16"]


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one worker allows itself."""

    block_size: int = 16  # tokens a KV block
    kv_bytes: int | None = None  # size of the block pool; None: derived from the memory that is free
    max_num_seqs: int = 64  # sequences in one step
    token_budget: int = 512  # tokens in one step: prompt chunks and decode tokens together
    max_context: int | None = None  # tokens; None: the model's own
    prefill_order: Literal["fcfs", "length"] = (
        "fcfs"  # length: short prompts together and first, long ones alone
    )


class Speculation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Draft tokens to be verified. The text is the same with and without."""

    method: Literal["ngram", "draft"] = "ngram"
    max_draft: int = 4  # tokens a step; the engine shortens it as acceptance falls
    ngram: int = 3  # longest suffix that is looked up
    draft_model: str | None = None  # folder or name, for method "draft"


class Transfer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How KV goes from prefill to decode workers."""

    # map: read where it lies, where both map one memory, else pull; pull: the reader copies; push: the owner copies
    mode: Literal["map", "pull", "push"] = "map"
    transport: Literal["auto", "shm", "tcp", "nixl"] = "auto"  # auto: shm on one host, tcp between hosts
    checksum: Literal["full", "sampled", "off"] = "sampled"
    lease_s: float = 30.0  # a lease that nobody renews ends after this long
    heartbeat_s: float = 5.0
    listen: str = "127.0.0.1"  # address of the block server of the tcp transport
    encrypt: Literal["auto", "on", "off"] = "auto"  # the tcp transport; auto: where it leads beyond the host

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        if self.heartbeat_s * 2 > self.lease_s:
            raise RequestError("lease_s must be at least twice heartbeat_s", param="transfer.lease_s")
        if self.encrypt == "on" and self.transport in ("shm", "nixl"):
            raise RequestError(
                f"transfer.encrypt: the {self.transport} transport cannot encrypt; use tcp or auto",
                param="transfer.encrypt",
            )


class Admission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what strangers may send."""

    max_queued: int = 256  # requests admitted and not ended; one more gets 429
    max_connections: int = 4096  # one more gets 503
    max_head_bytes: int = 64 << 10
    max_body_bytes: int = 4 << 20
    max_held_body_bytes: int = 256 << 20  # of all bodies whose requests have not ended; past it 429
    max_n: int = 16
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    drain_s: float = 30.0


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    served_name: str | None = None  # None: derived from `model`
    dtype: Dtype | None = None  # None: bfloat16 where the machine multiplies it fast, else float32
    quantize: Literal["none", "int8", "int4", "keep"] = "none"  # keep: as the GGUF file has it, where ops can
    prefill: int = 1
    decode: int = 1
    threads: int | None = None  # compute threads a worker; None: cores divided by workers
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False  # the same text at any concurrency
    seed: int = 0
    local_prefill_tokens: int = (
        64  # uncached prompts up to this long are prefilled by the decode worker itself
    )
    limits: EngineLimits = EngineLimits()
    speculation: Speculation | None = None
    transfer: Transfer = Transfer()
    launcher: Literal["local", "ray"] = "local"  # ray: workers on the nodes of a Ray cluster
    ray_address: str | None = None  # of that cluster; None: a small one on this host
    admission: Admission = Admission()
    adapters: dict[str, str] = {}  # served name -> folder of a LoRA adapter
    ledger: str | None = None  # file that gets one JSON line a step
    cluster: ClusterSpec | None = None  # what the workers stand on, and who decides how many

    @property
    def roles(self) -> dict[Literal["prefill", "decode", "mixed"], int]:
        """Workers by the role they open with. Without prefill workers the others do both: they are mixed."""
        if self.prefill == 0:
            return {"prefill": 0, "decode": 0, "mixed": self.decode}
        return {"prefill": self.prefill, "decode": self.decode, "mixed": 0}

    def check_served(self) -> None:
        """Raise RequestError naming what `serve` does not run: instances of several devices, or beyond one host."""
        cluster = self.cluster
        if cluster is not None:
            for name in ("prefill_tp", "prefill_pp", "decode_tp", "decode_pp"):
                if getattr(cluster, name) != 1:
                    raise RequestError(
                        f"serve runs one device a worker: cluster.{name} must be 1, not {getattr(cluster, name)}",
                        param=f"cluster.{name}",
                    )
        if self.prefill + self.decode > 64:
            raise RequestError("at most 64 workers on one host", param="prefill")

    @property
    def most_workers(self) -> int:
        """Workers there may be at one time."""
        started = self.prefill + self.decode
        return max(started, self.cluster.max_gpus or 0) if self.cluster is not None else started

    @property
    def control(self) -> ClusterSpec:
        """Who decides, how fast and within which bounds; the defaults where the document has no cluster section."""
        return self.cluster or ClusterSpec()

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        if self.prefill < 0 or self.decode < 0:
            raise RequestError("prefill and decode count workers: 0 or more", param="prefill")
        if self.decode == 0:
            raise RequestError(
                "decode must be at least 1: a decode worker can prefill, not the reverse", param="decode"
            )
        if self.cluster is not None:
            self.cluster.check()
            most = self.cluster.max_gpus
            if most is not None and most < self.prefill + self.decode:
                raise RequestError(
                    f"cluster.max_gpus: {most} devices are fewer than the {self.prefill + self.decode} workers at the start",
                    param="cluster.max_gpus",
                )
            if self.cluster.min_prefill + self.cluster.min_decode > self.most_workers:
                raise RequestError(
                    f"cluster.min_prefill and min_decode are more than the {self.most_workers} workers there may be",
                    param="cluster.min_prefill",
                )
        elif self.prefill + self.decode > 64:
            raise RequestError("at most 64 workers on one host", param="prefill")
        self._check_admission()
        limits = self.limits
        if not (1 <= limits.block_size <= 512 and limits.block_size & (limits.block_size - 1) == 0):
            raise RequestError("block_size must be a power of two up to 512", param="limits.block_size")
        if not 1 <= limits.max_num_seqs <= 4096:
            raise RequestError("max_num_seqs must be between 1 and 4096", param="limits.max_num_seqs")
        if limits.token_budget < limits.max_num_seqs:
            raise RequestError(
                f"token_budget ({limits.token_budget}) must be at least max_num_seqs ({limits.max_num_seqs}), "
                "or a full decode step does not fit",
                param="limits.token_budget",
            )
        if self.speculation and self.speculation.method == "draft" and not self.speculation.draft_model:
            raise RequestError("speculation by draft needs draft_model", param="speculation.draft_model")
        self.transfer.check()

    def _check_admission(self) -> None:
        for name, value in msgspec.structs.asdict(self.admission).items():
            if not (value > 0 or (name == "drain_s" and value == 0)):
                raise RequestError(
                    f"admission.{name} must be more than 0, not {value}: nothing could be served",
                    param=f"admission.{name}",
                )


def load_deployment(path: str | Path) -> Deployment:
    """Read and check a YAML deployment document. Raises RequestError with the place of the mistake."""
    try:
        document = yaml.safe_load(Path(path).read_text())
        deployment = checked(document, Deployment)
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param="deployment") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path}: {' '.join(str(error).split())}", param="deployment") from error
    except RequestError as error:
        raise RequestError(f"{path}: {error.message}", param="deployment") from error
    deployment.check()
    return deployment


def dump_deployment(deployment: Deployment) -> str:
    """The YAML document that `load_deployment` reads back to an equal value."""
    return yaml.safe_dump(msgspec.to_builtins(deployment), sort_keys=False)
