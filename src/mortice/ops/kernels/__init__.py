"""Operators written in the kernel language, one file a family; each runs on every target of `mortice.tile`.

They must not know torch: the operator files beside this folder call them and keep the torch reference.
"""
