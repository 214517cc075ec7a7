"""Every decision, as plain objects: state in, actions out. No torch, no I/O, no clock of its own."""
