"""Agents and workflows, durable, and the three sides of MCP.

It must not know how a model is served: any OpenAI-compatible endpoint will do.
"""
