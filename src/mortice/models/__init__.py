"""The transformers: one folder an architecture, a plain single-device model with its weight-name map beside
it.

A model sees one ragged batch (`StepInput`) and a paged KV cache. It knows nothing of requests, schedulers or
sampling.
"""
