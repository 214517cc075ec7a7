"""A config whose reader keeps a list of what it had to assume."""

import re
from difflib import get_close_matches
from typing import Any

from mortice.specs.model_fields import Config
from mortice.specs.shape import AttentionShape, FfnShape, LayerGroup, ModelShape

WEIGHT_DTYPES = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "compressed-tensors": "int8",
    "modelopt": "fp8",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
    "gptq": "int4",
    "awq": "int4",
}
TIED = ("gemma", "ernie4_5")  # families whose configs leave out that the head is the embedding
LIMIT = 1 << 20  # no dimension of a decoder is beyond it (vocabularies are below two million)
MAX_LAYERS = 4096
SIZE = re.compile(r"(size|dim|rank|heads|layers|experts|window|chunk|groups|width|top_?k)(_|$)")
NO_SIZE = {  # fields whose names say size and that no cost hangs on: sampling, training, how groups are chosen
    "num_key_value_heads",  # read wherever keys have heads; a latent has none
    "top_k",
    "chunk_size_feed_forward",
    "decoder_sparse_step",
    "max_window_layers",
    "n_group",
    "num_expert_group",
    "ep_size",
    "topk_group",
    "min_group_size",
}


class _Read(dict[str, Any]):
    """A dictionary that remembers which keys were asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)


class Noted(Config):
    """A `Config` that writes down each assumed value, and bounds what a stranger's file can say."""

    def __init__(self, values: dict[str, Any], name: str, prefix: str = "") -> None:
        self._read = _Read(values)
        super().__init__(self._read, prefix)
        self.name = name
        self.assumed: list[str] = []

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        """As `Config.integer`; a field that is absent while one of nearly its name is there is a slip, not a default."""
        if default is not None and not self.has(name):
            others = [str(key) for key in self.values if key != name]
            for near in get_close_matches(name, others, n=1, cutoff=0.92):
                raise self.wrong(near, f"is not known; did you mean {name}?")
        return super().integer(name, default, least)

    def size(self, field: str, default: int | None = None, least: int = 1) -> int:
        """An integer dimension; a default that is used is noted."""
        if default is not None and not self.has(field):
            self.assumed.append(f"{self.prefix}{field} is not in the config: {default}")
        value = self.integer(field, default, least)
        if value > 2 * LIMIT:
            raise self.wrong(field, f"must be at most {2 * LIMIT}, got {value}")
        return value

    def heads(self) -> tuple[int, int, int]:
        """(query heads, KV heads, head size)."""
        heads = self.size("num_attention_heads")
        kv_heads = self.size("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self.wrong("num_key_value_heads", f"({kv_heads}) must divide {heads} query heads")
        derived = max(1, self.integer("hidden_size") // heads)
        return heads, kv_heads, self.integer("head_dim", derived)

    def grouped(self) -> AttentionShape:
        heads, kv_heads, head_dim = self.heads()
        return AttentionShape(num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, value_dim=head_dim)

    def layers(self) -> int:
        count = self.integer("num_hidden_layers")
        if count > MAX_LAYERS:
            raise self.wrong("num_hidden_layers", f"must be at most {MAX_LAYERS}, got {count}")
        return count

    def experts(self, count: int, top_k: int, field: str = "num_experts_per_tok") -> tuple[int, int]:
        if top_k > count:
            raise self.wrong(field, f"({top_k}) is more than the experts there are ({count})")
        return count, top_k

    def weight_dtype(self) -> str:
        """Of the checkpoint: what its quantisation says, else its dtype."""
        quantised = self.nested("quantization_config")
        method = str(quantised.values.get("quant_method") or "")
        algorithm = str(quantised.values.get("quant_algo") or "").lower()
        if method and algorithm in WEIGHT_DTYPES:
            return WEIGHT_DTYPES[algorithm]
        if method:
            if method not in WEIGHT_DTYPES:
                self.assumed.append(f"quantization_config.quant_method {method!r} is not known: bf16 weights")
            return WEIGHT_DTYPES.get(method, "bf16")
        dtype = str(self.values.get("dtype") or self.values.get("torch_dtype") or "")
        if dtype.removeprefix("torch.") not in WEIGHT_DTYPES:
            self.assumed.append(f"{self.prefix}torch_dtype is not in the config: bf16 weights")
        return WEIGHT_DTYPES.get(dtype.removeprefix("torch."), "bf16")

    def _tied(self) -> bool:
        """Whether the head is the embedding; a config that leaves it open means its family's habit."""
        usual = str(self.values["model_type"]).startswith(TIED)
        if usual and not self.has("tie_word_embeddings"):
            self.assumed.append(f"{self.prefix}tie_word_embeddings is not in the config: true, as its family")
        return self.flag("tie_word_embeddings", usual)

    def _note_unread(self) -> None:
        """Sizes that the file has and this family does not: a variant that is not known costs something else."""
        for field, value in self._read.items():
            counts = isinstance(value, int) and not isinstance(value, bool) and value > 1
            if counts and field not in self._read.seen | NO_SIZE and SIZE.search(field):
                self.assumed.append(
                    f"{self.prefix}{field} = {value} is not known of this family and was not used"
                )

    def shape(self, layers: list[tuple[AttentionShape, FfnShape]], context_field: str = "") -> ModelShape:
        """The model whose layers these are, in order; equal layers become a group."""
        tied, dtype = self._tied(), self.weight_dtype()
        width, vocabulary = self.size("hidden_size"), self.size("vocab_size")
        context = self.integer(context_field or "max_position_embeddings", 1 << 20)
        drafts = self.integer("num_nextn_predict_layers", 0, least=0)
        self._note_unread()
        groups = list(dict.fromkeys(layers))
        order = tuple(groups.index(layer) for layer in layers)
        return ModelShape(
            name=self.name,
            family=str(self.values["model_type"]),
            hidden_size=width,
            vocab_size=vocabulary,
            max_context=context,
            groups=tuple(
                LayerGroup(count=order.count(i), attention=attention, ffn=ffn)
                for i, (attention, ffn) in enumerate(groups)
            ),
            order=order,
            tie_embeddings=tied,
            draft_layers=drafts,
            weight_dtype=dtype,
            assumed=tuple(self.assumed),
            source=str(self.values.get("_source", "config.json")),
        )
