"""Who holds which block: the pool's books, the prefix index, leases and the hand-over protocol.

Books only: no memory, no torch, no clock of its own (time comes in as an argument).
"""
