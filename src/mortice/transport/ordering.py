"""Whether a reader may prove what it read of another process's memory by counters it looks at afterwards."""

import platform

# A seqlock without fences needs loads that are not reordered among themselves.
LOADS_IN_ORDER = platform.machine() in ("x86_64", "AMD64", "i686")
