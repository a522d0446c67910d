"""Certification: run dense and MoE over the same data and write down what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from moesaic.architectures import SparseTarget, records
from moesaic.calibration.data import Source as Given
from moesaic.certification.by_layer import explained, fits, load_by_layer
from moesaic.certification.capture import run
from moesaic.certification.certificate import Certificate
from moesaic.certification.diversity import diversity
from moesaic.certification.origin import check_record, check_stock, is_source
from moesaic.certification.promise import broken, hold_to_promise
from moesaic.certification.source import Source
from moesaic.certification.spliced import SplicedCertificate, certify_spliced
from moesaic.certification.tally import Tally
from moesaic.certification.text import Batch, Text
from moesaic.checkpoints.dense import read_json
from moesaic.errors import CertificateError
from moesaic.lazy import torch
from moesaic.modeling.loading import load
from moesaic.modeling.sections import SECTION
from moesaic.routing import Routing

HELD = 1 << 27
"""Logits and hidden values that are held for comparison at once."""
HELD_BY_LAYER = 1 << 30
"""The same where layers come from disk: small beside a layer of such a model, and each batch reads the whole model."""

Runner = Callable[..., "torch.Tensor"]
"""Takes what `run` takes behind the model; holds the model, or has it come and go."""


def certify(
    dense: str | Path,
    moe: str | Path,
    *,
    moe_config: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    data: Given | None = None,
    max_tokens: int = 1024,
    streaming: bool | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Certificate | SplicedCertificate:
    """Compare a dense model with the MoE made from it, in float32.

    Args:
        dense, moe: folders. moe_config, record: config.json and moesaic.json of the MoE; None reads them from there.
        data: what the model reads, as a file, a folder or rows; None takes built-in passages, or random inputs where
            the model reads no text. max_tokens: compared in all.
        streaming: read each layer when its turn comes and drop it after; None: where both models do not fit in memory.
            A model with spliced MoE layers is always held whole.
        progress: called with (layers run since the last call, layers in all).

    Raises:
        ValueError: if max_tokens is below 2.
        CertificateError: if layers of a spliced model shall come one by one; if the dense model is of another class or
            size than the one that the MoE was made from; if a weight is left over or missing, or a promised function is
            not kept. A dense model of the same class and size with other weights is compared, and the certificate says
            so.
    """
    if max_tokens < 2:
        raise ValueError(f"max_tokens: it must be 2 or more. Got {max_tokens}.")
    dense, moe = Path(dense), Path(moe)
    record = record or read_json(moe / "moesaic.json")
    check_record(record, moe)
    config = moe_config or read_json(moe / "config.json")
    if SECTION in config:
        if streaming:
            raise CertificateError(
                f"{moe}: a model whose layers come one by one must be of a stock class. Got MoE layers spliced into "
                f"{config[SECTION]['class_name']}, which is held whole. Leave --layer-by-layer out."
            )
        dense_config = read_json(dense / "config.json")
        return certify_spliced(dense, moe, config, dense_config, record, data, max_tokens, progress)
    return certify_stock(dense, moe, config, record, data, max_tokens, streaming, progress)


def certify_stock(
    dense: Path,
    moe: Path,
    moe_config: Mapping[str, Any],
    record: Mapping[str, Any],
    data: Given | None,
    max_tokens: int,
    streaming: bool | None,
    progress: Callable[[int, int], None],
) -> Certificate:
    """Compare a dense language model with the stock MoE made from it, on text; arguments as for `certify`."""
    target, spec = records(SparseTarget)[record["target"]], record["spec"]
    sources = Source.open(dense), Source.open(moe, moe_config)
    check_stock(*sources, record)
    vocab, hidden = sources[0].vocab_and_hidden
    text = Text.read(dense, data, max_tokens, vocab)
    by_layer = not fits(*sources) if streaming is None else streaming
    held_per_token = vocab + sources[0].num_layers * hidden
    batches = list(text.batches((HELD_BY_LAYER if by_layer else HELD) // held_per_token))
    steps = 2 * len(batches) * sources[0].num_layers
    run_dense, run_moe = (_by_layer(source) if by_layer else _whole(source) for source in sources)
    tally = Tally()
    for batch in batches:
        _compare(batch, run_dense, run_moe, tally, target, spec, lambda: progress(1, steps))
    for layer, value in diversity(sources[1], target, spec):
        tally.layers[layer].diversity = value
    recorded = is_source(sources[0].checkpoint, record)
    found = Certificate.of(
        tally,
        text.name,
        promised=bool(record["preserves_function"]),
        rounds_to=record.get("rounds_to"),
        is_source=recorded,
    )
    if recorded:
        hold_to_promise(broken(record, "the logits", tally.max_logit_diff, tally.max_logit), found.to_json())
    return found


def _whole(source: Source) -> Runner:
    return partial(run, load(source.checkpoint.folder, source.config, torch.float32))


def _by_layer(source: Source) -> Runner:
    def go(*args: Any) -> torch.Tensor:
        try:
            return run(load_by_layer(source), *args)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise explained(error, source) from error

    return go


def _compare(
    batch: Batch,
    dense: Runner,
    moe: Runner,
    tally: Tally,
    target: SparseTarget,
    spec: Mapping[str, Any],
    step: Callable[[], None],
) -> None:
    """Run one batch through both models; a dense layer's output is held until the MoE's comes."""
    held: dict[int, torch.Tensor] = {}

    def keep(layer: int, x_BTD: torch.Tensor) -> None:
        held[layer] = batch.real(x_BTD)
        step()

    def meet(layer: int, x_BTD: torch.Tensor) -> None:
        tally.layers[layer].add(held.pop(layer), batch.real(x_BTD))
        step()

    def route(layer: int, logits: torch.Tensor) -> None:
        routing = Routing.from_logits(
            batch.real(logits), spec["top_k"], score=target.score, normalize=spec["normalize_gates"]
        )
        tally.layers[layer].route(routing)

    dense_BTV = dense(batch.ids(), keep)
    moe_BTV = moe(batch.ids(), meet, dict.fromkeys(spec["moe_layers"], target.router_modules), route)
    if dense_BTV.shape != moe_BTV.shape:
        raise CertificateError(
            f"The dense model: its logits must be those of the MoE, {list(moe_BTV.shape)}. Got "
            f"{list(dense_BTV.shape)}. Give the language model that the MoE was made from."
        )
    for dense_TV, moe_TV, ids in zip(dense_BTV, moe_BTV, batch.sequences, strict=True):
        tally.logits(dense_TV[: len(ids)], moe_TV[: len(ids)], torch.tensor(ids))


__all__ = ["Certificate", "SplicedCertificate", "Text", "certify"]
