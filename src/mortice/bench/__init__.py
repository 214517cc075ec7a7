"""Load from outside: sends a workload to any OpenAI endpoint and says what its users would have felt."""
