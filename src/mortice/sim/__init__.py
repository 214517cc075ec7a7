"""The simulator: a virtual clock, modelled workers and links, faults; it drives `sched` and `kv` unchanged.

It must not know torch, sockets or wall time.
"""
