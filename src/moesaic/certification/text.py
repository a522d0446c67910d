"""What a certificate is made on: real text, as token ids in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from moesaic.calibration import open_data
from moesaic.calibration.data import Source
from moesaic.errors import CalibrationError, CertificateError
from moesaic.lazy import torch
from moesaic.texts import builtin

ROWS = (".json", ".jsonl", ".yaml", ".yml")
"""Endings of files that hold many texts."""
MOST = 64  # texts of a folder
PIECE = 2048  # tokens; a longer text is compared in pieces, so that attention's cost and a model's context are kept


@dataclass(frozen=True)
class Text:
    """What to compare on: token ids of each sequence, and a name for the table."""

    name: str
    sequences: list[list[int]]

    @classmethod
    def read(cls, dense: Path, data: Source | None, max_tokens: int, vocab: int) -> Text:
        """Tokenise the built-in passages or the user's text file, at most `max_tokens` in all, 2 or more.

        A model folder without a tokenizer is compared on random token ids, and the table says so.

        Raises:
            CertificateError: if the file can't be read, holds no text, or there is no tokenizer for it.
        """
        passages = builtin() if data is None else _passages(data)
        encode = _tokenizer(dense)
        if data is not None:
            check(dense, data)
        if encode is None:
            key = int.from_bytes(hashlib.sha256(b"certificate").digest()[:4], "little")
            rows = min(4, max_tokens // 2)
            generator = torch.Generator().manual_seed(key)
            ids = torch.randint(vocab, (rows, max_tokens // rows), generator=generator)
            return cls("random token ids (the model has no tokenizer)", ids.tolist())
        read = passages[: max_tokens // 2]
        whole = [encode(text)[: max_tokens // len(read)] for _, text in read]
        pieces = [ids[start : start + PIECE] for ids in whole for start in range(0, len(ids), PIECE)]
        kept = [ids for ids in pieces if len(ids) > 1]
        if not kept:
            raise CertificateError(f"{_name(data)}: the text must hold at least two tokens. Got none. Give more text.")
        if (largest := max(map(max, kept))) >= vocab:
            raise CertificateError(f"{dense}: token ids must be below the embedding's {vocab} rows. Got {largest}.")
        return cls("built-in passages" if data is None else _name(data), kept)

    def batches(self, max_tokens: int) -> Iterator[Batch]:
        """Yield the sequences in order, as many at once as fit into `max_tokens` with their padding; at least one."""
        group: list[list[int]] = []
        for ids in self.sequences:
            longest = max(map(len, [*group, ids]))
            if group and longest * (len(group) + 1) > max_tokens:
                yield Batch(group)
                group = []
            group.append(ids)
        yield Batch(group)


@dataclass(frozen=True)
class Batch:
    """Sequences that run together, padded on their right."""

    sequences: list[list[int]]

    def ids(self) -> torch.Tensor:
        """Return token ids [B, T]; what stands behind a sequence's end is never looked at."""
        longest = max(map(len, self.sequences))
        return torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for ids in self.sequences])

    def real(self, x_BT: torch.Tensor) -> torch.Tensor:
        """Return what belongs to real tokens, [T, ...], from [B, T, ...] or [B * T, ...]."""
        lengths = torch.tensor(list(map(len, self.sequences)))
        real_BT = torch.arange(int(lengths.max())) < lengths[:, None]
        return x_BT.reshape(real_BT.numel(), -1)[real_BT.flatten()]


def check(dense: Path, data: Source) -> None:
    """Refuse a text file that no certificate can be made on; takes no time, so do it before the model is converted.

    Raises:
        CertificateError: if the file can't be read, is empty, or the model has no tokenizer for it.
    """
    if not any(text.strip() for _, text in _passages(data)):
        raise CertificateError(f"{_name(data)}: the text must hold at least two tokens. Got none. Give more text.")
    if not _has_tokenizer(dense):
        raise CertificateError(
            f"{dense}: the model must have a tokenizer for the text of --data. Got none. Add its files, or leave "
            "--data out and compare on random token ids."
        )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))


def _tokenizer(folder: Path) -> Callable[[str], list[int]] | None:
    if not _has_tokenizer(folder):
        return None
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise CertificateError(
            f"{folder}: its tokenizer must load with the installed transformers. It does not: {error}"
        ) from error

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    return encode


def _name(data: Source | None) -> str:
    return Path(data).name if isinstance(data, str | Path) else type(data).__name__


def _passages(data: Source) -> list[tuple[str, str]]:
    """Return texts by name: a plain file as a whole, of many texts a fair sample."""
    data = Path(data) if isinstance(data, str) else data
    if isinstance(data, Path) and not data.is_dir() and data.suffix not in ROWS:
        return [(data.name, _read(data))]
    try:
        items = islice(open_data(data).visit(seed=0), MOST)
        return [(item.name, item.text) for item in items if item.text]
    except CalibrationError as error:
        raise CertificateError(str(error)) from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CertificateError(f"{file}: the text must be readable UTF-8. Got: {error}.") from None
