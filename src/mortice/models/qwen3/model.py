"""Qwen3 (arXiv 2505.09388): Llama with an RMS norm over each head of q and k.

The norms are a switch of the spec, and the checkpoint names are Llama's.
"""

from mortice.models.llama.model import Llama


class Qwen3(Llama):
    """Nothing of its own."""
