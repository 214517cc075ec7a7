"""Seconds of a collective on the tiers of a device's network: latency plus bytes over attained bandwidth.

Bytes are those of one rank unless said otherwise; times are of the whole collective. Formulas: the usual ring and
switch counts; expert exchange with one copy a destination (DeepEP).
"""

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mortice.cost.accounting import Number
from mortice.cost.assumption import Assumption
from mortice.cost.efficiency import efficiency
from mortice.specs.hardware import HardwareSpec, Link, TierName

ATTAINED = {"package": 0.8, "node": 0.72, "domain": 0.65, "scale_out": 0.8, "host": 0.8}
EXCHANGE = {
    "package": 0.5,
    "node": 0.48,
    "domain": 0.55,
    "scale_out": 0.8,
    "host": 0.5,
}  # of expert exchanges
EXCHANGE_SOURCE = (
    "aiconfigurator-core: DeepEP low-latency tables of H100 boards, NVLink two-sided exchange of GB200"
)
ATTAINED_SOURCE = (
    "NCCL bus bandwidth of H100 and B200 boards (all-reduce 0.72 to 0.98, all-to-all 0.62 to 0.70), one-sided "
    "exchange on NVL72 (0.62 to 0.65), 40 of 50 GB/s a NIC with DeepEP on H800"
)


class Links:
    """Collectives among packages of one kind of hardware, placed as closely as they fit."""

    def __init__(self, hardware: HardwareSpec) -> None:
        self.hardware = hardware
        self.overhead_s = efficiency(hardware.architecture).collective_s

    def assumptions(self) -> tuple[Assumption, ...]:
        """Shares of peak that nobody gave."""
        near = [link for link in self.hardware.links if link.efficiency is None]
        return tuple(
            [
                Assumption(f"{link.tier} link", f"{self.attained(link):g} of peak", ATTAINED_SOURCE)
                for link in near
            ]
            + [
                Assumption(
                    f"expert exchange on the {link.tier} link",
                    f"{EXCHANGE[link.tier]:g} of peak",
                    EXCHANGE_SOURCE,
                )
                for link in near
                if link.tier in ("node", "domain")
            ]
        )

    def attained(self, link: Link) -> float:
        """Share of the peak that large messages reach."""
        return ATTAINED[link.tier] if link.efficiency is None else link.efficiency

    def rate(self, ranks: Number) -> NDArray[np.float64]:
        """Attained bytes/s of one rank, one direction, in a group of so many ranks."""
        return self._by_reach(ranks, lambda link: link.bytes_per_s * self.attained(link))

    def latency(self, ranks: Number) -> NDArray[np.float64]:
        return self._by_reach(ranks, lambda link: link.latency_s)

    def _by_reach(self, ranks: Number, value: Callable[[Link], float]) -> NDArray[np.float64]:
        sizes, where = np.unique(np.asarray(ranks, dtype=float), return_inverse=True)
        chosen = [0.0 if size <= 1 else value(self.hardware.reach(int(np.ceil(size)))) for size in sizes]
        return np.asarray(chosen)[where].reshape(np.shape(ranks))

    def all_reduce(self, ranks: Number, moved: Number) -> Number:
        """Ring, 2 (p - 1) / p of the bytes; half of it where the switch reduces."""
        share = 2.0 * (np.asarray(ranks) - 1.0) / ranks
        switched = self._by_reach(ranks, lambda link: 1.0 if link.multicast else 0.0)
        share = np.where(switched > 0, np.minimum(share, 1.2), share)
        return self._timed(ranks, share * moved, hops=2.0)

    def all_gather(self, ranks: Number, total: Number) -> Number:
        """All-gather (or reduce-scatter) whose result has `total` bytes."""
        return self._timed(ranks, (np.asarray(ranks) - 1.0) / ranks * total, hops=1.0)

    def all_to_all(self, ranks: Number, moved: Number) -> Number:
        """Each rank sends `moved` bytes, spread evenly over all ranks with itself."""
        return self._timed(ranks, (np.asarray(ranks) - 1.0) / ranks * moved, hops=1.0)

    def point_to_point(self, moved: Number, tier: TierName = "scale_out") -> Number:
        """One message from one package to another."""
        link = self.hardware.link(tier)
        return link.latency_s + np.asarray(moved) / (link.bytes_per_s * self.attained(link))

    def dispatch(
        self, ranks: Number, tokens: Number, token_bytes: float, top_k: int, *, dedup: bool = True
    ) -> Number:
        """One way of an expert exchange: `tokens` a rank go to the ranks that hold their k experts.

        Beyond the fast domain tokens cross scale-out and are spread inside; both tiers work at once, the slower one
        counts. With `dedup` a token is sent once to each rank, and once across scale-out to each domain; without
        (DeepEP's low-latency kernels) once for each expert. Routing is uniform: see `visits`.
        """
        group = np.asarray(ranks, dtype=float)
        span = self._near_span()
        inside, domains = np.minimum(group, span), np.ceil(group / span)
        copies = visits(group, top_k) if dedup else top_k
        crossing = visits(domains, top_k) if dedup else top_k
        near = np.asarray(tokens) * token_bytes * copies * (group - 1) / np.maximum(group, 1)
        far = np.asarray(tokens) * token_bytes * crossing * (domains - 1) / np.maximum(domains, 1)
        local = near / np.maximum(self._exchange_rate(inside), 1e-9)
        remote = np.where(domains > 1, far / np.maximum(self._exchange_rate(group), 1e-9), 0.0)
        time = np.maximum(local, remote) + self.overhead_s + self.latency(group)
        return cast(Number, np.where(group > 1, time, 0.0))

    def _exchange_rate(self, ranks: Number) -> NDArray[np.float64]:
        return self._by_reach(ranks, lambda link: link.bytes_per_s * (link.efficiency or EXCHANGE[link.tier]))

    def _near_span(self) -> int:
        spans = [link.span for link in self.hardware.links if link.tier in ("node", "domain") and link.span]
        return max(spans, default=1)

    def _timed(self, ranks: Number, moved: Number, hops: float) -> Number:
        rate = np.maximum(self.rate(ranks), 1e-9)
        time = self.overhead_s + hops * self.latency(ranks) + np.asarray(moved) / rate
        return cast(Number, np.where(np.asarray(ranks) > 1, time, 0.0))


def visits(groups: Number, top_k: int) -> Number:
    """Groups that hold at least one of a token's k experts: g (1 - (1 - 1/g)^k), draws with replacement."""
    count = np.maximum(np.asarray(groups, dtype=float), 1.0)
    return cast(Number, count * (1.0 - (1.0 - 1.0 / count) ** top_k))
