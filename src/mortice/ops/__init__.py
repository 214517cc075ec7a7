"""One file an operator: the reference in PyTorch, the fast bodies, and the choice between them.

Takes and gives tensors; knows nothing of models, requests or workers.
"""
