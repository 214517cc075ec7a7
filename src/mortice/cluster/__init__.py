"""Many workers, live: starts them, watches them, and carries out what `sched` decides.

Speaks token ids; text, HTTP and templates belong to `serve` and `text`.
"""
