"""Tensors into a safetensors file, where a full or failing disk is the OSError that it is."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk has no room."""


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device and layout.

    Raises:
        OSError: with the file's name and the system's number, which safetensors puts into a text.
    """
    from safetensors import SafetensorError  # noqa: PLC0415  # brings torch
    from safetensors.torch import save_file  # noqa: PLC0415

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(held, file, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from None
