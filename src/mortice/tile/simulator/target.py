"""The simulator as a target: tile IR, lowered for a card, run on NumPy arrays or CPU tensors."""

from dataclasses import dataclass

from mortice.tile.arguments import Argument
from mortice.tile.host import Bound
from mortice.tile.ir.printer import text
from mortice.tile.ir.stmt import Function
from mortice.tile.passes.gpu.cards import SM_80, SM_90A, Card
from mortice.tile.passes.gpu.lower import Choices, lower
from mortice.tile.simulator.run import simulate


def simulate_hopper(function: Function) -> "Simulated":
    return Simulated(function)


def simulate_sm_80(function: Function) -> "Simulated":
    return Simulated(function, SM_80)


@dataclass
class Simulated:
    function: Function
    card: Card = SM_90A
    seed: int = 0

    @property
    def source(self) -> str:
        return text(lower(self.function, Choices(card=self.card))[0])

    def __call__(self, bound: Bound) -> None:
        """Results that keep TMA's rules leave as they would on a card."""
        aligned = frozenset(
            param.buffer.name
            for param in self.function.tensors
            if param.result and _keeps_rules(bound.tensors[param.buffer.name])
        )
        self.seed += 1
        simulate(lower(self.function, Choices(aligned=aligned, card=self.card))[0], bound, self.seed)


def _keeps_rules(argument: Argument) -> bool:
    return argument.type(look_at_alignment=True).align == 16
