"""The vocabulary of the house: plain data, read from files or sent over wires, checked where it enters.

Knows nothing of torch, sockets or clocks; imports no other room.
"""
