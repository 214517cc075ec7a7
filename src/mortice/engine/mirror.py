"""KV of another device, seen from the host: what a transport moves when the pool itself is out of its reach."""

import numpy as np
import torch
from torch import Tensor


class HostMirror:
    """Host blocks of the same numbers as the device's. A block is copied out when it is offered to a peer, and in when it
    came from one; in between the two may differ."""

    def __init__(self, device_blocks: Tensor, host_blocks: np.ndarray) -> None:
        """Both uint8 [num_blocks, block_bytes]."""
        self._device = device_blocks
        self._host = torch.from_numpy(host_blocks)

    def copy_out(self, blocks: list[int]) -> None:
        index = torch.tensor(blocks, device=self._device.device)
        self._host[blocks] = self._device.index_select(0, index).cpu()

    def copy_in(self, blocks: list[int]) -> None:
        index = torch.tensor(blocks, device=self._device.device)
        self._device.index_copy_(0, index, self._host[blocks].to(self._device.device))
