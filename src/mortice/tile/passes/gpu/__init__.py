"""From tile operators to the thread level of a Hopper card: layouts, roles, rings, instructions.

It must not know back ends.
"""
