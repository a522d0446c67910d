"""Certification: run dense and MoE over the same text and write down what changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.architectures import SparseTarget, records
from moesaic.certify.capture import load, run
from moesaic.certify.certificate import Certificate, Tally
from moesaic.certify.diversity import diversity
from moesaic.checkpoints.dense import read_json
from moesaic.errors import CertificateError
from moesaic.lazy import torch
from moesaic.texts import builtin

PROMISE = 1e-4
"""A kept function may move a logit by this share of the largest one: float32 rounding over many layers, no more."""


@dataclass(frozen=True)
class Text:
    """What to compare on: token ids of each sequence, and a name for the table."""

    name: str
    sequences: list[list[int]]

    @classmethod
    def read(cls, dense: Path, data: Path | None, max_tokens: int, vocab: int) -> Text:
        """Tokenise the built-in passages or the user's text file, at most `max_tokens` in all.

        A model folder without a tokenizer is compared on random token ids, and the table says so.

        Raises:
            CertificateError: if the file can't be read or holds no text.
        """
        passages = builtin() if data is None else [(data.name, _read(data))]
        encode = _tokenizer(dense)
        if encode is None:
            key = int.from_bytes(hashlib.sha256(b"certificate").digest()[:4], "little")
            ids = torch.randint(vocab, (4, max(max_tokens // 4, 8)), generator=torch.Generator().manual_seed(key))
            return cls("random token ids (the model has no tokenizer)", ids.tolist())
        share = max(max_tokens // len(passages), 2)
        sequences = [encode(text)[:share] for _, text in passages]
        kept = [ids for ids in sequences if len(ids) > 1]
        if not kept:
            raise CertificateError(f"{data}: the text must hold at least two tokens. Got none. Give more text.")
        return cls("built-in passages" if data is None else data.name, kept)


def certify(
    dense: Path,
    moe: Path,
    *,
    moe_config: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    data: Path | None = None,
    max_tokens: int = 1024,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Certificate:
    """Compare a dense model with the MoE made from it, in float32.

    Args:
        dense, moe: folders. moe_config, record: config.json and moesaic.json of the MoE; None reads them from there.
        data: a UTF-8 text file; None takes the built-in passages. max_tokens: tokens compared in all.
        progress: called with (sequences done since the last call, sequences in all).

    Raises:
        CertificateError: if a weight is left over or missing, or a promised function is not kept.
    """
    record = record or read_json(moe / "moesaic.json")
    moe_config = moe_config or read_json(moe / "config.json")
    dense_config = read_json(dense / "config.json")
    target = records(SparseTarget)[record["target"]]
    spec = record["spec"]
    text = Text.read(dense, data, max_tokens, _text_config(dense_config)["vocab_size"])
    dense_model = load(dense, dense_config, torch.float32)
    moe_model = load(moe, moe_config, torch.float32)
    tally = Tally(len(dense_model.get_decoder().layers))
    routers = dict.fromkeys(spec["moe_layers"], target.router_modules)
    for ids in text.sequences:
        ids_1T = torch.tensor([ids])
        passes = run(dense_model, ids_1T, {}), run(moe_model, ids_1T, routers)
        tally.add(*passes, ids_1T[0], spec["top_k"], target.score, normalize=spec["normalize_gates"])
        progress(1, len(text.sequences))
    for layer, value in diversity(moe, target, spec):
        tally.layers[layer].diversity = value
    certificate = Certificate.of(tally, text.name, promised=bool(record["preserves_function"]))
    _hold_to_promise(certificate, record["experts"]["method"])
    return certificate


def _hold_to_promise(certificate: Certificate, method: str) -> None:
    limit = PROMISE * max(certificate.max_logit, 1.0)
    if certificate.promised and not certificate.max_logit_diff <= limit:
        raise CertificateError(
            f"{method}: the converted model must compute what the dense one does, as this method promises. Got a "
            f"logit difference of {certificate.max_logit_diff:.3g} (allowed {limit:.3g}). Nothing was published."
        )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config", config)
    return text if isinstance(text, Mapping) else config


def _tokenizer(folder: Path) -> Callable[[str], list[int]] | None:
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return None
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids

    return encode


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CertificateError(f"{file}: the text must be readable UTF-8. Got: {error}.") from None


__all__ = ["Certificate", "Text", "certify"]
