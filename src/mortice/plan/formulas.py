"""The formulas by name: what each says, of what, who published it, where it holds, and which function computes it.

`mortice plan explain NAME` prints an entry, `docs/plan/formulas.md` is made of all of them.
"""

import difflib

import msgspec

from mortice.specs.errors import NotFound

STEP3 = "Step-3, arXiv 2507.19427"
MEGASCALE = "MegaScale-Infer, arXiv 2504.02263"
RATIO = "A/F ratio, arXiv 2601.21351"
LIMITS = "AFD challenges, arXiv 2602.09721"
META_CP = "Context parallelism, arXiv 2411.01783"


class Formula(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    formula: str
    inputs: dict[str, str]  # symbol -> meaning with its unit
    source: str
    holds: str  # range of validity
    code: str  # module:function


FORMULAS: tuple[Formula, ...] = (
    Formula(
        name="cost.unit",
        title="Price of one FLOP and of one byte",
        formula="U_flop = price / 3600 / peak;  U_byte = price / 3600 / bandwidth",
        inputs={
            "price": "USD an hour and package",
            "peak": "dense FLOP/s of the dtype that is computed in",
            "bandwidth": "memory bytes/s",
        },
        source=f"{STEP3}, section 4; unrounded (the paper prints 2.80e-19 for H800, exactly 2.806e-19)",
        holds="a device that is kept busy; price by the hour",
        code="mortice.cost:unit_cost",
    ),
    Formula(
        name="cost.attention",
        title="Attention of one decoded token",
        formula="max(FLOP_attn U_flop, BYTES_kv U_byte) + FLOP_linear U_flop",
        inputs={
            "FLOP_attn": "core attention of all layers at the context, FLOP",
            "BYTES_kv": "KV or state read (and written) a token, bytes",
            "FLOP_linear": "projections of all layers, FLOP",
        },
        source=f"{STEP3}, section 4",
        holds="communication hidden, linears compute bound, no embedding, head, norm or router (under 5 %)",
        code="mortice.plan.token_cost:token_cost",
    ),
    Formula(
        name="cost.ffn",
        title="Experts of one decoded token",
        formula="FLOP_ffn U_flop",
        inputs={"FLOP_ffn": "active experts, shared expert and dense layers, FLOP"},
        source=f"{STEP3}, section 4",
        holds="expert weights amortised over a large enough batch: see density",
        code="mortice.plan.token_cost:token_cost",
    ),
    Formula(
        name="cost.prefill",
        title="One prompt token, the mean over the prompt",
        formula="(FLOP_gemm + FLOP_attention(T)) / T x U_flop",
        inputs={
            "T": "tokens of the prompt: the context",
            "FLOP_attention": "T^2 pairs as published, T^2 / 2 honest",
        },
        source="as prefill.work",
        holds="arithmetic bound; divided over prefill packages only",
        code="mortice.plan.token_cost:token_cost",
    ),
    Formula(
        name="cost.training",
        title="One trained token",
        formula="3 x (FLOP_attn + FLOP_linear + FLOP_ffn) x U_flop",
        inputs={"FLOP_attn": "core attention at the whole context as published, at half of it honest"},
        source=f"{STEP3}, figure 4 (.076 and .213 on 910B at 8K)",
        holds="backward is twice the forward, nothing recomputed",
        code="mortice.cost:training_usd_per_token",
    ),
    Formula(
        name="cost.kernels",
        title="The honest price of a token",
        formula="price / 3600 x seconds of a step of n sequences / n,  n = 2^20",
        inputs={
            "seconds": "tiles, kernels' share of peak and bandwidth, or measured: docs/plan/cost-model.md"
        },
        source="this cost model; checked on Step-3's table 9 and on aiconfigurator's tables",
        holds="weights and launches do not show, links hidden; plan compare has whole instances",
        code="mortice.plan.token_cost:large_step",
    ),
    Formula(
        name="cost.afd",
        title="Best pair of hardware against one kind",
        formula="AFD = min_hw cost_attn + min_hw cost_ffn;  one kind = min_hw (cost_attn + cost_ffn)",
        inputs={"hw": "the hardware that is compared"},
        source=f"{STEP3}, section 4",
        holds="as cost.attention; AFD can never be dearer here, the honest plan adds links and whole instances",
        code="mortice.plan.token_cost:best_placement",
    ),
    Formula(
        name="cost.throughput",
        title="USD a million tokens from throughput",
        formula="USD / 1M = price * 1e6 / (3600 * tokens/s/GPU)",
        inputs={"price": "USD an hour and GPU", "tokens/s/GPU": "of the phase that is priced"},
        source="InferenceX cost cells (.38, .31, .20 for GB200 at 2.21 USD/h)",
        holds="prefill and decode GPUs each divided by their own",
        code="mortice.plan.token_cost:usd_per_mtok",
    ),
    Formula(
        name="afd.period",
        title="Period of the attention-FFN pipeline",
        formula="P = max(m M, Sigma);  T = Sigma + (m L - 1) M  if m M >= Sigma  else  L Sigma + (m - 1) M",
        inputs={
            "m": "micro-batches in flight",
            "M": "slowest of the four resources, s a layer",
            "Sigma": "sum of the four, s a layer",
            "L": "layers",
        },
        source="derived; equals the discrete-event check on 5,000 random cases to 1e-9; StepMesh states both "
        "inequalities",
        holds="equal micro-batches and layers, duplex link; otherwise `simulate`",
        code="mortice.plan.pipeline:iteration_s",
    ),
    Formula(
        name="afd.budget",
        title="Time of a stage in one layer",
        formula="TPOT / stages / L  (three stages: A, both legs, F; four: A, A2F, F, F2A)",
        inputs={"TPOT": "s a token", "L": "layers"},
        source=f"{STEP3}, section 3 (272 us printed, 273.2 exactly, for 50 ms and 61 layers)",
        holds="m equal to the number of stages",
        code="mortice.plan.pipeline:stage_budget_s",
    ),
    Formula(
        name="afd.fanout",
        title="Both ends of the link",
        formula="A side: (b_d + b_c) H b_A N_F P_send / Net_A;  F side: (b_d + b_c) H b_A N_A P_send / Net_F",
        inputs={
            "b_d, b_c": "bytes an element out and back (1 and 2)",
            "b_A": "tokens of one A instance and micro-batch",
            "N_A, N_F": "instances",
            "Net": "bytes/s of an instance, one direction",
        },
        source=f"{STEP3}, sections 3 and 7; the attention end explains its limit of 3,072 tokens in 3A4F",
        holds="A broadcast: P_send = 1",
        code="mortice.plan.links:legs",
    ),
    Formula(
        name="afd.send",
        title="Chance that an F peer is needed by a token",
        formula="P_send = 1 - C(E - E/N_F, k) / C(E, k)",
        inputs={"E": "routed experts", "k": "experts a token", "N_F": "F instances"},
        source="derived; aiconfigurator uses the same",
        holds="uniform routing",
        code="mortice.plan.links:send_probability",
    ),
    Formula(
        name="afd.micro_batches",
        title="Micro-batches that hide the link",
        formula="m >= 2 (1 + T_c / T_f),  T_f = max(T_a, T_e)",
        inputs={"T_a, T_e": "s a layer of attention and experts", "T_c": "s of one leg"},
        source=f"{MEGASCALE}",
        holds="T_c < T_f",
        code="mortice.plan.megascale:micro_batches_needed",
    ),
    Formula(
        name="afd.balance",
        title="Attention instances that keep the experts busy",
        formula="n_a = k1 E / (k3 K);  T_total = (T_a + T_e + 2 T_c) + T_f (m L - 1)",
        inputs={"k1, k3": "slopes of T_a and T_e, s a token", "E, K": "experts, experts a token"},
        source=MEGASCALE,
        holds="times linear in tokens; one expert a node",
        code="mortice.plan.megascale:search",
    ),
    Formula(
        name="afd.ratio",
        title="Best number of attention instances an FFN instance",
        formula="r* = max((t_A - beta_F)/(alpha_F B), (t_C - beta_F)/(alpha_F B), sqrt(n beta_F/(alpha_F B)))",
        inputs={
            "t_A": "s of attention at the load theta B, with the barrier over r workers",
            "alpha_F, beta_F": "slope and constant of the FFN, s",
            "B": "slots of an A instance",
            "n": "packages of the FFN side over those of an A worker; 1 in the paper",
        },
        source=RATIO,
        holds="linear times; within 10 % of the simulator (the authors' bound and ours)",
        code="mortice.plan.af_ratio:optimal_ratio",
    ),
    Formula(
        name="afd.load",
        title="Context that a slot holds on average",
        formula="theta = E[D P + D (D - 1) / 2] / E[D]",
        inputs={"P": "prompt tokens", "D": "answer tokens"},
        source=RATIO,
        holds="slots refilled at once; take it from a trace, heavy tails make it far larger than the mean lengths",
        code="mortice.plan.af_ratio:mean_load",
    ),
    Formula(
        name="afd.dead_zone",
        title="Ceiling of the experts' utilisation",
        formula="HFU = 2 I BW_up / FLOPS",
        inputs={
            "I": "hidden width of one expert",
            "BW_up": "attainable scale-up bytes/s of a GPU",
            "FLOPS": "peak",
        },
        source=f"{LIMITS} (33.1 % on H800, 65.5 % on GB200 for experts of 2,048)",
        holds="8-bit out, 16-bit back; where scale-up is the cap neither batch nor nodes help",
        code="mortice.plan.dead_zone:max_hfu",
    ),
    Formula(
        name="afd.fastafd",
        title="Speed-up of cutting the experts off inside one rack",
        formula="(B_AFD / B_base) (T_base / T_AFD) M / (M + N),  T_AFD = (B_AFD / B_base) T_attn + m T_dense",
        inputs={"T_attn, T_dense": "shares of the colocated step", "M, N": "attention and FFN nodes"},
        source="FastAFD, Hao AI Lab, July 2026 (1.45, 1.35, 1.41, 1.44 measured)",
        holds="experts hidden behind attention",
        code="mortice.plan.fastafd:speedup",
    ),
    Formula(
        name="moe.density",
        title="Least density that the network allows",
        formula="S >= (b_d + b_c) f w H R L / (2 Net T_stage);  S / (H L) >= FLOPS / (Net BW beta), beta = 11.1 ms",
        inputs={
            "S": "(k + shared) / (E + shared)",
            "R": "FLOPS / BW of one card",
            "w": "bytes a weight",
            "f": "fan-out of the busier end",
            "Net": "bytes/s of a server's NICs",
            "T_stage": "TPOT / 3, s",
        },
        source=f"{STEP3}, sections 5.3 to 5.5, table 7",
        holds="experts on other servers than attention; both legs share the stage",
        code="mortice.plan.density_limit:DensityTerms",
    ),
    Formula(
        name="moe.batch",
        title="Tokens that make experts compute bound",
        formula="B_dense = R w / 2;  B_MoE = B_dense / S",
        inputs={"R": "FLOP a byte of the card", "w": "bytes a weight", "S": "density"},
        source=f"{STEP3}, section 5.3",
        holds="uniform routing",
        code="mortice.plan.density_limit:DensityTerms.moe_batch",
    ),
    Formula(
        name="ep.visits",
        title="Copies of a token that leave a rank",
        formula="E[u] = sum over groups of 1 - C(E - E_g, k) / C(E, k)",
        inputs={"E_g": "experts of the group (rank or domain)", "k": "experts a token"},
        source="derived; with replacement g (1 - (1 - 1/g)^k), as measured tables count",
        holds="uniform routing",
        code="mortice.plan.exchange:expected_visits",
    ),
    Formula(
        name="ep.exchange",
        title="Dispatch or combine over two tiers",
        formula="max(alpha_up + bytes_up / BW_up, alpha_out + bytes_out / BW_out)",
        inputs={
            "bytes_out": "one copy a further domain visited",
            "bytes_up": "one copy a further rank visited",
        },
        source="alpha-beta with deduplication; 15 % of GB200 EP64 and DeepEP EP16 to EP64 rows",
        holds="tiers overlapped by chunks; low-latency kernels send one copy an expert instead",
        code="mortice.plan.exchange:exchange_s",
    ),
    Formula(
        name="kv.transfer",
        title="KV from prefill to decode",
        formula="t = alpha + tokens * bytes_per_token / BW;  hidden if BW >= bytes_per_token * prefill tokens/s",
        inputs={"bytes_per_token": "all layers", "BW": "bytes/s of the link of one instance"},
        source="DistServe, arXiv 2401.09670",
        holds="one transfer at a time on the link; k at once take k times as long",
        code="mortice.plan.kv:transfer_s",
    ),
    Formula(
        name="kv.reuse",
        title="Bandwidth from which fetching KV beats computing it",
        formula="BW > KV bytes(prefix) / (FLOP(prefix) / (peak * efficiency))",
        inputs={"prefix": "tokens already computed elsewhere"},
        source="Mooncake, equation 2, with each model's own FLOPs and bytes",
        holds="one prefix, link idle",
        code="mortice.plan.kv:reuse",
    ),
    Formula(
        name="prefill.work",
        title="Arithmetic of a long prompt",
        formula="2 P T + 2 L n_h (d_qk + d_v) (T Pfx + T^2 / 2)",
        inputs={"P": "active matrix weights", "T": "new tokens", "Pfx": "cached prefix"},
        source="standard; latent attention un-absorbed",
        holds="full causal attention",
        code="mortice.plan.context:AttentionShape.work",
    ),
    Formula(
        name="prefill.ring",
        title="Ring attention: pass KV or queries",
        formula="pass-KV if T >= N C n_kv e / (2 n_h BW)  or  T/(T+Pfx) >= 2 n_kv/n_h - 4 T BW/(N C e)",
        inputs={"C": "achieved FLOP/s of a rank", "BW": "bytes/s of a rank", "N": "ranks"},
        source=META_CP,
        holds="causal, zig-zag split",
        code="mortice.plan.context:ring_choice",
    ),
    Formula(
        name="prefill.pipeline",
        title="Bubble of a chunk pipeline",
        formula="(P - 1) / (P - 1 + M)",
        inputs={"P": "stages", "M": "chunks of equal cost"},
        source="classic; SGLang PP4 on H20 reached 82.8 %",
        holds="chunks cut to equal cost: later ones shorter",
        code="mortice.plan.context:pipeline_bubble",
    ),
    Formula(
        name="prefill.exponent",
        title="Exponent unit as the bound of attention",
        formula="bound above 2 (d_qk + d_v) exp/s",
        inputs={"exp/s": "exponentials a second (5 T GB200, 10.7 T GB300)"},
        source="vendor's figures; derived",
        holds="one exponential a score",
        code="mortice.plan.context:exponent_bound_flops",
    ),
    Formula(
        name="mtp.break_even",
        title="When drafting tokens pays",
        formula="arithmetic x (q + 1) / a, KV bytes / a, FFN x (q + 1) / a per useful token",
        inputs={"q": "drafted tokens a step", "a": "tokens kept a step, 1 to q + 1"},
        source=f"{STEP3}, section 5.2; derived",
        holds="FFN compute bound: it pays for every drafted token",
        code="mortice.cost:Speculation",
    ),
    Formula(
        name="roofline.intensity",
        title="Arithmetic intensity of attention",
        formula="FLOP_attn / BYTES_kv against FLOPS / BW",
        inputs={"FLOP_attn, BYTES_kv": "one decoded token"},
        source=f"{STEP3}, section 4 (128 Step-3, 512 DeepSeek-V3, 32 Qwen3-235B)",
        holds="decode; constant in context for stacks of one kind only",
        code="mortice.cost:arithmetic_intensity",
    ),
)
_BY_NAME = {f.name: f for f in FORMULAS}


def formula(name: str) -> Formula:
    """The entry of that name. Raises NotFound with the nearest names."""
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.3) or sorted(_BY_NAME)[:3]
        raise NotFound(f"explain knows no {name!r}; nearest are {', '.join(near)}", param="name")
    return _BY_NAME[name]
