"""Llama and what is shaped like it: SmolLM2, Mistral."""
