"""Waiting times in closed form: what the simulator is checked against and the policies plan with.

Poisson arrivals, one queue, first come first served. Times in one unit, rates in its inverse.
"""

import math


def md1_ttft(rate: float, service: float) -> float:
    """Mean TTFT of one device that serves prompts of fixed time `service` (DistServe, arXiv 2401.09670, eq. 1)."""
    return mg1_wait(rate, service, service * service) + service


def pipeline_ttft(rate: float, service: float, stages: int) -> float:
    """The same over `stages` pipeline stages (eq. 2, for two; the general form follows from it)."""
    slot = service / stages
    return mg1_wait(rate, slot, slot * slot) + service


def tensor_ttft(rate: float, service: float, speed_up: float) -> float:
    """The same with tensor parallelism that is `speed_up` times faster (eq. 3)."""
    return md1_ttft(rate, service / speed_up)


def crossover(speed_up: float) -> float:
    """Load rate * service on one device above which two pipeline stages beat two tensor ranks (eqs. 2 and 3)."""
    low, high = 0.0, min(2.0, speed_up) * (1 - 1e-12)
    for _ in range(200):
        middle = (low + high) / 2
        better = tensor_ttft(middle, 1.0, speed_up) < pipeline_ttft(middle, 1.0, 2)
        low, high = (middle, high) if better else (low, middle)
    return low


def mg1_wait(rate: float, mean: float, mean_square: float) -> float:
    """Mean wait of an M/G/1 queue (Pollaczek and Khinchine); infinite where it has no steady state."""
    rho = rate * mean
    if rho >= 1:
        return math.inf
    return rate * mean_square / (2 * (1 - rho))


def mg1_wait_quantile(rate: float, mean: float, mean_square: float, share: float) -> float:
    """Wait that `share` of arrivals do not exceed: nothing for 1 - rho of them, an exponential tail of the same mean for the
    others. Exact for exponential service; the usual approximation elsewhere."""
    rho = rate * mean
    if rho >= 1:
        return math.inf
    if rho <= 1 - share or rho == 0:
        return 0.0
    return mg1_wait(rate, mean, mean_square) / rho * math.log(rho / (1 - share))


def erlang_c(servers: int, load: float) -> float:
    """Chance that an arrival at an M/M/n queue waits; `load` is rate * service in servers."""
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang B by its recursion, which does not overflow
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return servers * blocked / (servers - load * (1 - blocked))


def mgn_wait(servers: int, rate: float, mean: float, mean_square: float) -> float:
    """Mean wait at `servers` servers with one queue: M/M/n scaled by (1 + CV^2) / 2 (Lee and Longton)."""
    if servers < 1 or rate * mean >= servers:
        return math.inf
    if rate <= 0:
        return 0.0
    chance = erlang_c(servers, rate * mean)
    return chance * mean / (servers - rate * mean) * mean_square / (2 * mean * mean)


def mgn_wait_quantile(servers: int, rate: float, mean: float, mean_square: float, share: float) -> float:
    """Wait that `share` of arrivals do not exceed at `servers` servers; tail as in `mg1_wait_quantile`."""
    if servers < 1 or rate * mean >= servers:
        return math.inf
    chance = erlang_c(servers, rate * mean) if rate > 0 else 0.0
    if chance <= 1 - share:
        return 0.0
    return mgn_wait(servers, rate, mean, mean_square) / chance * math.log(chance / (1 - share))
