"""`python -m mortice`: the `mortice` command without its script."""

from mortice.cli import main

main()
