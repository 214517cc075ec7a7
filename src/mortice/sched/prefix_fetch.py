"""What it takes to have a cached prefix sent from one prefill worker to another."""

import msgspec


class PrefixFetch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds; the transfer is alone on both ports."""

    base_s: float
    token_s: float

    def lasts_s(self, tokens: int) -> float:
        return self.base_s + self.token_s * tokens
