"""Reading single fields of a Hugging Face config, and the groups of fields that architectures spell alike."""

import math
from typing import Any, cast

from mortice.specs.errors import RequestError
from mortice.specs.model import Activation, RopeKind, RopeSpec


class Config:
    """A dictionary whose readers say which field is wrong."""

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self.values = values
        self.prefix = prefix

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def wrong(self, name: str, why: str) -> RequestError:
        return RequestError(f"config: {self.prefix}{name} {why}", param=self.prefix + name)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self.wrong(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, f"must be an integer, got {value!r}")
        if value < least:
            raise self.wrong(name, f"must be at least {least}, got {value}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name)
        if value is None:
            if default is None:
                raise self.wrong(name, "is missing")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(name, f"must be a number, got {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, f"must be true or false, got {value!r}")
        return value

    def nested(self, name: str) -> "Config":
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise self.wrong(name, f"must be an object, got {value!r}")
        return Config(value, f"{self.prefix}{name}.")


def common(config: Config, architecture: str) -> dict[str, Any]:
    """The fields that every architecture spells alike."""
    eos = config.values.get("eos_token_id")
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token, int) for token in eos_ids):
        raise config.wrong("eos_token_id", f"must be an integer or a list of them, got {eos!r}")
    bos = config.values.get("bos_token_id")
    dtype = config.values.get("dtype") or config.values.get("torch_dtype") or "float32"
    return {
        "architecture": architecture,
        "num_layers": config.integer("num_hidden_layers"),
        "hidden_size": config.integer("hidden_size"),
        "intermediate_size": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "eos_token_ids": tuple(eos_ids),
        "bos_token_id": bos if isinstance(bos, int) else None,
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "tie_embeddings": config.flag("tie_word_embeddings", False),
        "dtype": str(dtype).removeprefix("torch."),
    }


def read_activation(config: Config, name: str = "hidden_act", default: str = "silu") -> Activation:
    activation = config.values.get(name) or default
    names: dict[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
    if activation not in names:
        raise config.wrong(name, f"is {activation!r}; supported are {', '.join(names)}")
    return names[activation]


def read_rope(
    config: Config, dim: int, context: int, *, theta: float = 10_000.0, interleaved: bool = False
) -> RopeSpec:
    """`context` is max_position_embeddings, the default for the trained context of a stretched model."""
    scaling = (
        config.nested("rope_parameters") if config.has("rope_parameters") else config.nested("rope_scaling")
    )
    theta = scaling.number("rope_theta", config.number("rope_theta", theta))
    return scaled_rope(scaling, dim, context, theta, interleaved)


def scaled_rope(scaling: Config, dim: int, context: int, theta: float, interleaved: bool = False) -> RopeSpec:
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    if kind not in ("default", "linear", "dynamic", "llama3", "yarn"):
        raise scaling.wrong("rope_type", f"is {kind!r}; supported are default, linear, dynamic, llama3, yarn")
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise scaling.wrong("partial_rotary_factor", "other than 1 is not supported")
    if theta <= 0:
        raise scaling.wrong("rope_theta", "must be positive")
    factor = 1.0
    if kind != "default":
        original = scaling.integer("original_max_position_embeddings", context)
        factor = scaling.number("factor", context / original if kind == "yarn" else None)
        if factor < 1:
            raise scaling.wrong("factor", f"must be at least 1, got {factor}")
    return RopeSpec(
        dim=dim,
        theta=theta,
        kind=cast(RopeKind, kind),
        factor=factor,
        original_context=context
        if kind == "dynamic"
        else scaling.integer("original_max_position_embeddings", context),
        low_freq_factor=scaling.number("low_freq_factor", 1.0),
        high_freq_factor=scaling.number("high_freq_factor", 4.0),
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        attention_factor=yarn_attention_factor(scaling, factor) if kind == "yarn" else 1.0,
        truncate=scaling.flag("truncate", True),
        interleaved=interleaved,
    )


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """How much sharper attention must be after stretching by `factor` (YaRN, arXiv 2309.00071, section
    3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(scaling: Config, factor: float) -> float:
    if scaling.has("attention_factor"):
        return scaling.number("attention_factor")
    mscale, all_dim = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if mscale and all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return yarn_mscale(factor)


def stretched(context: int, rope: RopeSpec) -> int:
    """Positions that can be served: max_position_embeddings, times the factor where the config does not
    count it in."""
    return int(context * rope.factor) if rope.kind in ("dynamic", "linear") else context
