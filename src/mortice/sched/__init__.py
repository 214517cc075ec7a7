"""Every decision, as plain objects: state in, actions out. No torch, no I/O, no clock of its own.

`plane.ControlPlane` is the front: events in, decisions out. docs/sched.md says what a driver feeds in and carries out.
"""
