"""The engine's states, and the verbs that move it between them.

running <-> paused          pause, resume
running, paused -> asleep   sleep: KV memory is given back (level 1), the weights too (level 2)
asleep -> running           wake
running, paused: update_weights, load_adapter, unload_adapter between two steps; in any other state 409
"""

from collections.abc import Callable

from mortice.engine.core import Engine
from mortice.engine.measure import measure
from mortice.specs.errors import RequestError, WrongState


class Admin:
    """Runs on the engine's thread, between steps. Every verb answers with a JSON-like dict or raises MorticeError."""

    def __init__(self, engine: Engine, *, free_memory: Callable[[], None], model_path: str) -> None:
        self.engine = engine
        self.state = "running"
        self._free_memory = free_memory
        self._weights_path = model_path
        self._weights_dropped = False
        self._verbs: dict[str, Callable[..., dict]] = {
            "pause": self.pause,
            "resume": self.resume,
            "sleep": self.sleep,
            "wake": self.wake,
            "update_weights": self.update_weights,
            "load_adapter": self.load_adapter,
            "unload_adapter": self.unload_adapter,
            "reset_prefix_cache": self.reset_prefix_cache,
            "check_integrity": self.check_integrity,
            "measure": self.measure,
        }

    def call(self, verb: str, args: dict) -> dict:
        if verb not in self._verbs:
            raise RequestError(f"unknown verb {verb!r}; known: {', '.join(self._verbs)}", param="verb")
        try:
            return self._verbs[verb](**args)
        except TypeError as error:
            raise RequestError(f"{verb}: {error}", param="args") from error

    def pause(self) -> dict:
        """No step runs until resume; requests and their KV stay as they are."""
        self._need("pause", "running", "paused")
        self.state = "paused"
        return {"state": self.state}

    def resume(self) -> dict:
        self._need("resume", "running", "paused")
        self.state = "running"
        return {"state": self.state}

    def sleep(self, level: int = 1) -> dict:
        """Give memory back. Sequences in flight keep their tokens and are computed again after wake."""
        self._need("sleep", "running", "paused")
        if level not in (1, 2):
            raise RequestError(f"level must be 1 or 2, not {level}", param="level")
        engine = self.engine
        if engine.scheduler.fetching or len(engine.handoff.leases):
            raise WrongState("KV is being handed over: pause new requests and try again when it is done")
        engine.scheduler.preempt_all()
        engine.pool.forget_all()
        self._free_memory()
        if level == 2:
            engine.runner.model.drop_weights()
            self._weights_dropped = True
        self.state = "asleep"
        return {"state": self.state, "level": level}

    def wake(self) -> dict:
        self._need("wake", "asleep")
        if self._weights_dropped:
            self.engine.runner.model.update_weights(self._weights_path)
            self._weights_dropped = False
        self.state = "running"
        return {"state": self.state}

    def update_weights(self, path: str, version: int | None = None, in_flight: str = "continue") -> dict:
        """New weights in place, from the next step on. The prefix cache is emptied: its KV is of the old weights.

        `in_flight`: sequences under way `continue` on the KV they have, or `recompute` it with the new weights.
        """
        self._need("update_weights", "running", "paused")
        if in_flight not in ("continue", "recompute"):
            raise RequestError(
                f"in_flight must be continue or recompute, not {in_flight!r}", param="in_flight"
            )
        engine = self.engine
        if version is not None and version <= engine.weight_version:
            raise RequestError(f"version must exceed {engine.weight_version}, not {version}", param="version")
        engine.runner.model.update_weights(path)
        engine.weight_version = engine.weight_version + 1 if version is None else version
        self._weights_path = path
        engine.pool.forget_all()
        if in_flight == "recompute":
            engine.scheduler.preempt_all()
        engine.renew_chains()
        return {"weight_version": engine.weight_version}

    def load_adapter(self, name: str, path: str) -> dict:
        self._need("load_adapter", "running", "paused")
        if name in self.engine.adapters:
            raise RequestError(f"adapter {name!r} is already loaded; unload it first", param="name")
        self.engine.runner.model.load_adapter(name, path)
        self.engine.adapters.add(name)
        return {"adapters": sorted(self.engine.adapters)}

    def unload_adapter(self, name: str) -> dict:
        self._need("unload_adapter", "running", "paused")
        if name not in self.engine.adapters:
            raise RequestError(f"adapter {name!r} is not loaded", param="name")
        if any(s.request.adapter == name for s in self.engine.scheduler.sequences()):
            raise WrongState(f"adapter {name!r} is in use by running requests")
        self.engine.runner.model.unload_adapter(name)
        self.engine.adapters.discard(name)
        self.engine.pool.forget_all()
        return {"adapters": sorted(self.engine.adapters)}

    def reset_prefix_cache(self) -> dict:
        self.engine.pool.forget_all()
        return {}

    def check_integrity(self) -> dict:
        """Walk the pool's books; an inconsistency is a bug and is answered with 500."""
        self.engine.check_integrity()
        scheduler = self.engine.scheduler
        return {
            "num_free_blocks": self.engine.pool.num_free,
            "num_blocks": self.engine.pool.num_blocks,
            "num_leases": len(self.engine.handoff.leases),
            "num_sequences": sum(1 for _ in scheduler.sequences()),
            "num_fetching": len(scheduler.fetching),
            "num_received": self.engine.handoff.counters.num_received,
            "num_in_place": self.engine.handoff.counters.num_in_place,
        }

    def measure(self) -> dict:
        """Times of steps of many sizes, one row a step."""
        self._need("measure", "running")
        return {"rows": measure(self.engine)}

    def _need(self, verb: str, *states: str) -> None:
        if self.state not in states:
            raise WrongState(f"cannot {verb} while {self.state}")
