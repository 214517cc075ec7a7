"""The pieces that decoders are put together from: attention, MLP, experts, the layer around them.

Each piece asks a Builder for its weights by checkpoint name and is then called with the step and the KV
cache.
"""
