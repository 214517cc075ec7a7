"""Bytes between workers: KV blocks out of one pool into another, by shared memory, TCP or NIXL.

Moves and verifies bytes under descriptors; decides nothing about who sends what to whom.
"""
