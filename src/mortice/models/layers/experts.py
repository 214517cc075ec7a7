"""A layer of experts: router, experts, and the shared expert that every token visits."""

from typing import NamedTuple

from torch import Tensor

from mortice.models.builder import Builder, Piece
from mortice.models.layers.mlp import GatedMLP, MLPNames
from mortice.models.step import StepInput
from mortice.ops.activation import ACTIVATIONS
from mortice.ops.moe import Expert, Routing, choose, router_scores, run_experts
from mortice.specs.model import ModelSpec


class MoENames(NamedTuple):
    """Checkpoint names. `experts` holds {} where the expert's number goes."""

    gate: str
    bias: str
    experts: MLPNames
    shared: MLPNames | None


class MixtureOfExperts:
    def __init__(self, spec: ModelSpec, names: MoENames, builder: Builder) -> None:
        moe = spec.moe
        assert moe is not None
        self.routing = Routing(
            moe.router, moe.top_k, moe.normalise, moe.scaling, moe.num_groups, moe.top_groups
        )
        self.activation = ACTIVATIONS[spec.activation]
        self.gate = builder.factor(f"{names.gate}.weight", moe.num_experts, spec.hidden_size, exact=True)
        self.bias = (
            builder.vector(names.bias, moe.num_experts, exact=True) if moe.router == "noaux_tc" else None
        )
        visits = moe.top_k / moe.num_experts
        self.experts: list[Expert] = []
        for e in range(moe.num_experts):
            gate, up, down = (name.format(e) for name in names.experts)
            pieces = Piece(gate, moe.expert_size), Piece(up, moe.expert_size)
            gate_up = builder.linear(pieces, spec.hidden_size, visits=visits, adaptable=False)
            self.experts.append(
                Expert(
                    gate_up,
                    builder.linear(
                        [Piece(down, spec.hidden_size)], moe.expert_size, visits=visits, adaptable=False
                    ),
                )
            )
        self.shared = None
        if moe.shared_size:
            assert names.shared is not None
            self.shared = GatedMLP(spec.hidden_size, moe.shared_size, spec.activation, names.shared, builder)

    def __call__(self, x: Tensor, step: StepInput) -> Tensor:
        """[T, hidden] to [T, hidden]."""
        scores = router_scores(x, self.gate, self.routing.router, step.deterministic)
        weights, ids = choose(scores, self.bias, self.routing)
        y = run_experts(x, weights, ids, self.experts, self.activation, step.deterministic)
        return y if self.shared is None else y.add_(self.shared(x, step))
