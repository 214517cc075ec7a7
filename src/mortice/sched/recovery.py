"""What becomes of a dead worker's place, and of the requests it had."""

import signal
from dataclasses import dataclass, field

# Workers that may die under one request, of what it can be blamed for, before it is held to be the cause.
MAX_ATTEMPTS = 4


def is_blamed(exit_code: int, *, was_silenced: bool, ran_out_of_memory: bool) -> bool:
    """Whether a worker's death may be the fault of a request it had.

    Not if somebody killed it from outside: SIGKILL that neither came from us, because the worker had fallen silent, nor
    from the kernel, because memory ran out. A request may meet any number of such deaths.
    """
    return exit_code != -signal.SIGKILL or was_silenced or ran_out_of_memory


@dataclass(slots=True)
class RestartPolicy:
    """When to start a replacement: at once after a first death, later after each quick one, never after too many.

    A life shorter than `quick_s` after becoming ready is a quick death; a longer one clears the count.
    """

    quick_s: float = 10.0
    first_delay_s: float = 0.0
    max_delay_s: float = 8.0
    max_quick_deaths: int = 6
    _quick_deaths: int = field(default=0, init=False)

    def died(self, *, became_ready: bool, lived_s: float) -> float | None:
        """Seconds to wait before the replacement starts; None to give the place up."""
        if became_ready and lived_s >= self.quick_s:
            self._quick_deaths = 0
        else:
            self._quick_deaths += 1
        # A worker that served before it was killed proves that its configuration works: never give it up for that.
        if not became_ready and self._quick_deaths >= self.max_quick_deaths:
            return None
        if self._quick_deaths <= 1:
            return self.first_delay_s
        return float(min(self.max_delay_s, 0.25 * 2 ** (self._quick_deaths - 2)))


def should_retry(num_attempts: int) -> bool:
    """Whether a request whose worker died for the `num_attempts`-th time since its last token goes to another worker. One
    that gets on between the deaths is a bystander."""
    return num_attempts < MAX_ATTEMPTS
