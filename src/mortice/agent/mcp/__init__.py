"""The Model Context Protocol on its three sides: host and client of other servers, server of ours.

The wire is the official SDK's; what is ours is what a host must decide.
"""
