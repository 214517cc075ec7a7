"""Several simulated clusters under one budget of accelerators: between ticks their planes claim, and hear their bounds."""

from collections.abc import Sequence

from mortice.sched.budget import bounds
from mortice.sched.events import Budgeted
from mortice.sim.cluster import Cluster


def run_together(clusters: Sequence[Cluster], budget: int) -> int:
    """To the end of all their requests; the most accelerators that were held together at the instants between two ticks.
    Clusters tick at one period. ValueError if the budget is below what they need at least."""
    period_s = clusters[0].plan.setup.pace.period_s
    most, at_s = 0, 0.0
    while any(not cluster.is_over for cluster in clusters):
        at_s += period_s / 2 if at_s == 0 else period_s
        for cluster in clusters:
            cluster.run(until_s=at_s)
            cluster.clock.run(at_s)  # one whose requests are over goes on ticking
        claims = [cluster.plane.claim(budget) for cluster in clusters]
        most = max(most, sum(claim.held for claim in claims))
        for cluster, gpus in zip(clusters, bounds(budget, claims), strict=True):
            cluster.plane.hear(Budgeted(at_s, gpus))
    return most
