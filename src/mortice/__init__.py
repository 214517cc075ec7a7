"""Mortice cuts an LLM system at its joints and fits the parts back together."""

__version__ = "0.1.0"
