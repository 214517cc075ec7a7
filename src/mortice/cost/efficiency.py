"""How much of a peak kernels reach, by family of hardware, where nothing was measured on the machine itself.

Sources: the Table 9 model of the project's reference (attention on SM90 and SM80, linears), aiconfigurator-core 0.12.0
tables (GEMM and decode attention on Hopper and Blackwell, launch floors), the CloudMatrix384 paper (Ascend).
"""

import msgspec

from mortice.cost.assumption import Assumption


class Efficiency(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of peak for large work, and fixed times for small."""

    attention_memory: float  # of bandwidth, reading KV
    attention_compute: dict[str, float]  # of the dense peak at full tiles, by attention family
    prefill_compute: float  # of the dense peak, causal prefill attention
    gemm_compute: float  # of the dense peak, m of 64 and more
    gemm_memory: float  # of bandwidth, reading weights
    experts_memory: float  # of bandwidth, reading routed experts
    elementwise_memory: float  # of bandwidth: norms, rotary, activation, residual
    launch_s: float  # floor of a kernel inside a captured graph
    attention_launch_s: float  # of attention: split over the context, and the parts put together
    experts_launch_s: float  # of routed experts: sorting, two grouped products, combining
    collective_s: float  # added to the links' latency in a collective
    quantise_s: float = 0.0  # of quantising activations before a product in 8 or 4 bits, a kernel of its own
    source: str

    def assumptions(self, architecture: str) -> tuple[Assumption, ...]:
        """What an answer that used these values must list."""
        why = f"{architecture}: {self.source}"
        families = ", ".join(f"{name} {share:g}" for name, share in self.attention_compute.items())
        return (
            Assumption(
                "attention kernels", f"{self.attention_memory:g} of bandwidth, {families} of peak", why
            ),
            Assumption("prefill attention", f"{self.prefill_compute:g} of peak", why),
            Assumption(
                "matrix products", f"{self.gemm_compute:g} of peak, {self.gemm_memory:g} of bandwidth", why
            ),
            Assumption(
                "kernel launch",
                f"{self.launch_s * 1e6:g} us, attention {self.attention_launch_s * 1e6:g}, "
                f"experts {self.experts_launch_s * 1e6:g}, quantising {self.quantise_s * 1e6:g}",
                why,
            ),
        )


def _family(mha: float, mla: float, mfa: float) -> dict[str, float]:
    return {"MHA": mha, "GQA": mha, "MQA": mfa, "MFA": mfa, "MLA": mla, "linear": mha}


HOPPER = Efficiency(
    attention_memory=0.90,
    attention_compute=_family(0.62, 0.85, 0.69),
    prefill_compute=0.50,
    gemm_compute=0.70,
    gemm_memory=0.65,
    experts_memory=0.65,
    elementwise_memory=0.70,
    launch_s=2.5e-6,
    attention_launch_s=8e-6,
    experts_launch_s=20e-6,
    collective_s=6e-6,
    source="fitted to Step-3's Table 9 on H800 and H20 (linears and attention), NCCL tables of H100",
)
AMPERE = msgspec.structs.replace(
    HOPPER, attention_memory=0.75, source="fitted to Step-3's Table 9 on A800, the rest as on Hopper"
)
BLACKWELL = msgspec.structs.replace(
    HOPPER,
    attention_memory=0.85,
    gemm_memory=0.73,
    collective_s=8e-6,
    quantise_s=3.5e-6,
    source="decode attention, matrix products and NCCL of aiconfigurator's B200 and GB200 tables, the rest as on Hopper",
)
ASCEND = msgspec.structs.replace(
    HOPPER,
    attention_memory=0.84,
    attention_compute=_family(0.62, 0.65, 0.65),
    source="MLA kernel figures of the CloudMatrix384 paper, the rest as on Hopper",
)
PROCESSOR = Efficiency(
    attention_memory=0.60,
    attention_compute=_family(0.30, 0.30, 0.30),
    prefill_compute=0.30,
    gemm_compute=0.60,
    gemm_memory=0.75,
    experts_memory=0.75,
    elementwise_memory=0.60,
    launch_s=5e-6,
    attention_launch_s=1e-5,
    experts_launch_s=2e-5,
    collective_s=5e-6,
    source="assumed; measure with `mortice plan profile`",
)
UNKNOWN = msgspec.structs.replace(HOPPER, source="assumed as on Hopper: nothing is known of these kernels")

BY_ARCHITECTURE = {
    "sm80": AMPERE,
    "sm89": AMPERE,
    "sm90": HOPPER,
    "sm100": BLACKWELL,
    "sm103": BLACKWELL,
    "ascend": ASCEND,
    "x86": PROCESSOR,
    "x86-amx": PROCESSOR,
    "arm": PROCESSOR,
}


def efficiency(architecture: str) -> Efficiency:
    """Of that family of hardware; for one that is not known, Hopper's, which says so."""
    return BY_ARCHITECTURE.get(architecture, UNKNOWN)
