"""The CPU back end: tile IR to C with OpenMP and vectors, through the system's compiler.

It must not know the frontend or the GPU side.
"""
