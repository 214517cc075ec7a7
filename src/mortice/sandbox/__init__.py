"""Machines for code nobody trusts: back ends, snapshots, egress, audit.

It must not know models, agents or HTTP.
"""
