"""Qwen2 (arXiv 2407.10671): Llama with biases on q, k and v, and a window on the upper layers where one is
switched on.

Both differences are switches of the spec, and the checkpoint names are Llama's.
"""

from mortice.models.llama.model import Llama


class Qwen2(Llama):
    """Nothing of its own."""
