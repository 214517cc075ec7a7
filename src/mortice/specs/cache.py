"""Where this user keeps what can be made or fetched again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$MORTICE_HOME, or mortice under the user's cache folder."""
    home = os.environ.get("MORTICE_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mortice"
