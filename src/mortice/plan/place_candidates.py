"""Layouts and divisions that a placement may choose among, each as the deployment document that it would become."""

import msgspec
import numpy as np

from mortice.cost import Formats, Layout, layout_fits, max_batch
from mortice.specs.cluster import ClusterSpec
from mortice.specs.deployment import Deployment, EngineLimits
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape
from mortice.specs.slo import SLO

DEGREES = (1, 2, 3, 4, 6, 8, 16)
WHOLE_PROMPTS = 8192  # token budget of a step where prefill stands alone
CHUNKS = (512, 2048)  # budgets that undivided workers are tried with
MAX_SEQS = 512


class Shape(msgspec.Struct, frozen=True, order=True):
    """Tensor and pipeline degree of an instance."""

    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        return self.tp * self.pp

    @property
    def name(self) -> str:
        return f"{self.tp}·{self.pp}"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be placed, on what, and what must be met."""

    model: ModelShape
    served: str  # as the document shall name it
    hardware: HardwareSpec
    hardware_name: str
    gpus: int
    slo: SLO
    formats: Formats
    longest: int  # tokens of the longest request

    @property
    def node(self) -> int:
        """Devices that NVLink or its like joins."""
        spans = [link.span for link in self.hardware.links if link.tier in ("node", "domain")]
        return max([1, *spans])

    def shapes(self, most: int) -> list[Shape]:
        """Layouts of up to `most` devices that hold the model and one longest request. Tensor parallelism stays in a node.

        Raises RequestError if there is none.
        """
        found = []
        for tp in DEGREES:
            for pp in DEGREES:
                layout = Layout(tp=tp, pp=pp)
                if tp * pp > most or tp > self.node or not bool(np.all(layout_fits(self.model, layout))):
                    continue
                if pp > 1 and self.model.num_layers % pp:
                    continue
                room = float(
                    np.asarray(
                        max_batch(self.model, self.hardware, layout, float(self.longest), self.formats)
                    )
                )
                if room >= 1:
                    found.append(Shape(tp, pp))
        if not found:
            raise RequestError(
                f"gpus: {self.model.name} in {self.formats.weights} with a request of {self.longest} tokens does not fit "
                f"{most} x {self.hardware.name}; give more, a smaller dtype, or clip the trace",
                param="gpus",
            )
        return found

    def document(
        self,
        prefill: Shape | None,
        decode: Shape,
        num_prefill: int,
        num_decode: int,
        *,
        budget: int,
        near: bool = False,
    ) -> Deployment:
        """`prefill` None: instances of `decode` that do both. `near`: KV moves over the node's own links."""
        first = prefill or decode
        return Deployment(
            model=self.served,
            prefill=num_prefill,
            decode=num_decode,
            limits=EngineLimits(token_budget=budget, max_num_seqs=MAX_SEQS),
            cluster=ClusterSpec(
                hardware=self.hardware_name,
                shape=self.model.name if self.model.name != self.served else None,
                weights=self.formats.weights,
                kv=self.formats.kv,
                prefill_tp=first.tp,
                prefill_pp=first.pp,
                decode_tp=decode.tp,
                decode_pp=decode.pp,
                slo=self.slo,
                port_bytes_per_s=self._near_port() if near else None,
            ),
        )

    def _near_port(self) -> float | None:
        for link in self.hardware.links:
            if link.tier in ("node", "domain"):
                return link.bytes_per_s * (link.efficiency or 0.7)
        return None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One placement and what was found out about it. Rates are requests a second of the whole placement."""

    document: Deployment
    prefill: Shape | None
    decode: Shape
    num_prefill: int
    num_decode: int
    expected: float = 0.0  # by closed forms
    goodput: float = 0.0  # by simulation; 0 if it was not simulated
    low: float = 0.0
    high: float = 0.0  # interval of 95 % over draws
    runs: int = 0

    @property
    def gpus(self) -> int:
        mine = self.prefill.gpus * self.num_prefill if self.prefill else 0
        return mine + self.decode.gpus * self.num_decode

    @property
    def name(self) -> str:
        if self.prefill is None:
            return f"{self.num_decode} x {self.decode.name} together, {self.document.limits.token_budget} tokens a step"
        return f"{self.num_prefill} x {self.prefill.name} + {self.num_decode} x {self.decode.name}"

    @property
    def per_gpu(self) -> float:
        return self.goodput / self.gpus


def undivided(question: Question, most_gpus: int) -> list[Candidate]:
    """Every layout and chunk size, as many instances as there is room for."""
    found = []
    for shape in question.shapes(min(most_gpus, 4 * question.node)):
        count = most_gpus // shape.gpus
        for budget in CHUNKS:
            document = question.document(None, shape, 0, count, budget=budget)
            found.append(
                Candidate(document=document, prefill=None, decode=shape, num_prefill=0, num_decode=count)
            )
    return found


def pair(
    question: Question, prefill: Shape, decode: Shape, p: int, d: int, *, near: bool = False
) -> Candidate:
    document = question.document(prefill, decode, p, d, budget=WHOLE_PROMPTS, near=near)
    return Candidate(document=document, prefill=prefill, decode=decode, num_prefill=p, num_decode=d)
