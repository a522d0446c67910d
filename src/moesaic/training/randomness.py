"""The state of all of this process's random numbers: taken, and set again, so that a pass can run as it ran before."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from moesaic.lazy import np, torch


@dataclass(frozen=True)
class RandomState:
    """Where the generators stand: torch's, numpy's (SpecAugment draws its masks from it) and Python's."""

    cpu: torch.Tensor
    cuda: list[torch.Tensor]
    numpy: Any
    python: Any

    @classmethod
    def taken(cls) -> RandomState:
        """Return the state of now."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def restore(self) -> None:
        """Set all generators back to it."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
