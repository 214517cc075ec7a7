"""What crosses the link between attention and experts, at both of its ends, and how little of it can be sent.

Bytes and seconds; a bandwidth is bytes a second, one direction, of the whole instance.
"""

import math

import msgspec

from mortice.specs.errors import RequestError


class Legs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that each end of the link needs for one micro-batch of one layer, by direction."""

    a2f_at_attention_s: float
    f2a_at_attention_s: float
    a2f_at_ffn_s: float
    f2a_at_ffn_s: float

    @property
    def a2f_s(self) -> float:
        return max(self.a2f_at_attention_s, self.a2f_at_ffn_s)

    @property
    def f2a_s(self) -> float:
        return max(self.f2a_at_attention_s, self.f2a_at_ffn_s)

    @property
    def attention_side_s(self) -> float:
        return self.a2f_at_attention_s + self.f2a_at_attention_s

    @property
    def ffn_side_s(self) -> float:
        return self.a2f_at_ffn_s + self.f2a_at_ffn_s

    @property
    def binding_end(self) -> str:
        return "attention" if self.attention_side_s > self.ffn_side_s else "ffn"


def send_probability(num_experts: int, num_ffn: int, top_k: int) -> float:
    """Chance that an F instance with E / N_F experts holds at least one of a token's k: 1 - C(E - E/N_F, k) / C(E, k).

    Uniform routing. Where N_F does not divide E the larger share is taken, which is the worst peer.
    """
    if not 1 <= num_ffn <= num_experts:
        raise RequestError(f"num_ffn must be 1 to {num_experts} experts, not {num_ffn}", param="num_ffn")
    if not 1 <= top_k <= num_experts:
        raise RequestError(f"top_k must be 1 to {num_experts}, not {top_k}", param="top_k")
    held = math.ceil(num_experts / num_ffn)
    return 1 - math.comb(num_experts - held, top_k) / math.comb(num_experts, top_k)


def legs(
    *,
    tokens_per_attention: float,
    hidden_size: int,
    num_attention: int,
    num_ffn: int,
    attention_net: float,
    ffn_net: float,
    dispatch_bytes: float = 1.0,
    combine_bytes: float = 2.0,
    send_share: float = 1.0,
    message_latency_s: float = 0.0,
) -> Legs:
    """Both ends of the fan-out: an A instance sends its tokens to N_F peers, an F instance hears N_A (Step-3, 3 and 7).

    `tokens_per_attention`: of one A instance and one micro-batch; `send_share`: 1 for a broadcast, else
    `send_probability`. `message_latency_s` is paid once a peer.
    """
    for name, value in (("attention_net", attention_net), ("ffn_net", ffn_net)):
        if not value > 0:
            raise RequestError(f"{name} must be above 0 bytes a second, not {value:g}", param=name)
    per_peer = tokens_per_attention * hidden_size * send_share

    def at(net: float, peers: int, element_bytes: float) -> float:
        return per_peer * peers * element_bytes / net + message_latency_s * peers

    return Legs(
        a2f_at_attention_s=at(attention_net, num_ffn, dispatch_bytes),
        f2a_at_attention_s=at(attention_net, num_ffn, combine_bytes),
        a2f_at_ffn_s=at(ffn_net, num_attention, dispatch_bytes),
        f2a_at_ffn_s=at(ffn_net, num_attention, combine_bytes),
    )


def max_tokens_per_ffn(
    *,
    budget_s: float,
    hidden_size: int,
    num_attention: int,
    num_ffn: int,
    attention_net: float,
    ffn_net: float,
    wire_bytes: float = 3.0,
    send_share: float = 1.0,
) -> tuple[float, str]:
    """Largest micro-batch an F instance can be fed when both legs share `budget_s`, and the end that binds.

    An F micro-batch is N_A times what an A instance sends.
    """
    per_token = wire_bytes * hidden_size * send_share
    by_attention = budget_s * attention_net / (per_token * num_ffn) * num_attention
    by_ffn = budget_s * ffn_net / per_token
    return (by_attention, "attention") if by_attention < by_ffn else (by_ffn, "ffn")
