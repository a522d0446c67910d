"""Dimension letters used in names, shapes and docstrings, and the tensor types built from them.

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

A suffix on a variable gives its shape: `x_TD`, `ids_TK`, `router_ED`. The types are checked at run time only under
pytest (jaxtyping's import hook).
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int

__all__ = ["Bool", "Float", "Int"]
