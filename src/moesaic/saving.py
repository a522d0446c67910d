"""Tensors into safetensors files, where a full or failing disk is the OSError that it is."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk has no room."""


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors of any device and layout.

    Raises:
        OSError: as `disk_faults`.
    """
    from safetensors.torch import save_file  # noqa: PLC0415  # brings torch

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with disk_faults(file):
        save_file(held, file, metadata)


@contextmanager
def disk_faults(place: Path) -> Iterator[None]:
    """Run what writes safetensors there, ours or transformers'.

    Raises:
        OSError: with the place's name and the system's number, which safetensors puts into a text.
    """
    from safetensors import SafetensorError  # noqa: PLC0415  # brings torch

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(place)) from None
