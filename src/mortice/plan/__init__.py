"""The questions: where a model should run, cut how, at what price, and what in it fights the hardware.

Owns the formulas of co-design, attention-FFN disaggregation, expert parallelism and supernodes, and the answers,
tables, pictures and report made of them; prices come from `cost`, facts from `specs`. Knows nothing of torch, of
sockets, of a live cluster.
"""
