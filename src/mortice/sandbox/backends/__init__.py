"""One file a wall: how each back end starts, saves and ends a machine."""
