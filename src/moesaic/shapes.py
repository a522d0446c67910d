"""The names that all of moesaic shares: dimension letters, and the matrices of an FFN.

| letter | what |
|---|---|
| T | tokens |
| D | hidden size |
| F | width of the dense FFN, in neurons |
| f | width of one expert, in neurons |
| E | routed experts |
| K | routed experts per token (top-k) |
| L | layers |
| V | vocabulary |

A suffix on a variable gives its shape: `x_TD`, `ids_TK`, `router_ED`.
"""

from __future__ import annotations

from typing import Literal

Matrix = Literal["gate", "up", "down", "gate_bias", "up_bias", "down_bias"]
"""The weights and biases of a feed-forward block; a plain block has no gate."""
