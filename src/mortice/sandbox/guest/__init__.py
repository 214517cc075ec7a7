"""What runs inside a sandbox. Standard library alone; never imported on the host, only read as text."""
