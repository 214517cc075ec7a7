"""Text on the way in and out: tokenizers, chat templates, streaming detokenisation, tool calls, grammars.

No torch, no network. What may run long on a stranger's input runs in the text worker, a process that can be
killed.
"""
