"""The kernel language: frontend, IR, passes, back ends, interpreter, simulator, autotuner.

It must not know any other room.
"""
