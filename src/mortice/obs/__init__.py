"""What can be seen from outside: the table of metrics, traces, the log."""
