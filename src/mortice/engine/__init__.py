"""One worker: its device state, the step, sampling, guided decoding, speculation, and the loop around them."""
