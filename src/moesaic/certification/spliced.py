"""The certificate of a model with spliced MoE layers: text, images or sound; any output; FFN by FFN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moesaic.calibration.data import Source
from moesaic.calibration.readers.base import Feed
from moesaic.calibration.rows import match
from moesaic.certification.batches import answer, open_batches
from moesaic.certification.certificate import NOISE, TINY, figures, layer_row, layer_rows, or_less, source_rows
from moesaic.certification.diversity import mean_distance
from moesaic.certification.origin import check_spliced_class, check_spliced_sizes, is_source
from moesaic.certification.promise import broken, hold_to_promise
from moesaic.certification.similarity import linear_cka, output_cosine
from moesaic.certification.tally import LayerTally, Mean
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.errors import CertificateError, listing
from moesaic.lazy import torch
from moesaic.modeling.dense_ffn import activation, dense_ffn
from moesaic.modeling.loading import load
from moesaic.modeling.sections import SECTION
from moesaic.quiet import quiet
from moesaic.routing import Routing
from moesaic.sites import Site

SAMPLE = 256
"""Tokens of an FFN on which all of its experts are run, about; evenly from all batches."""
LOGITS = "logits"
MAIN = (LOGITS, "last_hidden_state", "image_embeds", "text_embeds")
"""Outputs that say most about a model, in this order; the promise is held on every output."""
FAITHFUL = 1e-3
"""Largest difference, as a share of the largest value, between an FFN that was found and what the model computes."""


@dataclass(frozen=True)
class SplicedCertificate:
    """Dense against MoE on data of the model's own kind.

    Args:
        data: what was read. tokens: compared, of the output. output: what the figures are of, the first of `MAIN`
            that the MoE layers reach.
        max_diff, max_value: of it, over everything. cosine: mean, of its vectors, dense against MoE.
        kl, agreement: where it is logits: KL(dense || MoE) in nats, share with the same best class; else None.
        promised, rounds_to, is_source: as in `Certificate`. layers: one row per MoE layer.
    """

    data: str
    tokens: int
    output: str
    max_diff: float
    max_value: float
    cosine: float
    kl: float | None
    agreement: float | None
    promised: bool
    rounds_to: str | None
    layers: list[dict[str, Any]]
    is_source: bool

    def to_json(self) -> dict[str, Any]:
        """Return what goes into moesaic.json."""
        return {"summary": dict(self.rows()), **asdict(self)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the short table: quantity, value with its unit."""
        relative = self.max_diff / max(self.max_value, 1e-30)
        table = [
            *source_rows(is_source=self.is_source),
            ("data", f"{self.data}, {self.tokens:,} vectors of {self.output}"),
            ("max difference", f"{self.max_diff:.3g} ({relative:.1g} of {self.max_value:.3g}, the largest)"),
            ("1 - cosine of an output vector", f"{or_less(1 - self.cosine)} (mean)"),
        ]
        if self.kl is not None and self.agreement is not None:
            table.append(("KL(dense || MoE)", f"{or_less(self.kl)} nats"))
            table.append(("top-1 agreement", f"{100 * self.agreement:.2f} %"))
        return table + layer_rows(self.layers, self.rounds_to, promised=self.promised, is_source=self.is_source)


@dataclass
class Comparison:
    """What is counted of one output while both models run over the same data."""

    output: str
    cosine: Mean = field(default_factory=Mean)
    kl: Mean = field(default_factory=Mean)
    agreement: Mean = field(default_factory=Mean)
    max_diff: float = 0.0
    max_value: float = 0.0

    def add(self, dense: torch.Tensor, moe: torch.Tensor, feed: Feed) -> None:
        """Compare the output [B, ..., C] of one batch; padding is left out."""
        count = dense.numel() // dense.shape[-1]
        rows = match(feed, count, dense.device)
        dense_TC, moe_TC = rows.of(dense).double(), rows.of(moe).double()
        if not bool((dense_TC.sum() + moe_TC.sum()).isfinite()):
            which = "MoE" if bool(dense_TC.isfinite().all()) else "dense"
            raise CertificateError(
                f"The {which} model: {self.output} must be finite. Got NaN or infinity on this data."
            )
        self.max_diff = max(self.max_diff, float((dense_TC - moe_TC).abs().amax()))
        self.max_value = max(self.max_value, float(dense_TC.abs().amax()))
        self.cosine.add(torch.cosine_similarity(dense_TC, moe_TC, dim=-1, eps=1e-300))
        if self.output == LOGITS:
            log_p, log_q = dense_TC.log_softmax(-1), moe_TC.log_softmax(-1)
            self.kl.add(torch.linalg.vecdot(log_p.exp(), log_p - log_q))
            self.agreement.add(dense_TC.argmax(-1) == moe_TC.argmax(-1))


def certify_spliced(
    dense: Path,
    moe: Path,
    moe_config: Mapping[str, Any],
    dense_config: Mapping[str, Any],
    record: Mapping[str, Any],
    data: Source | None,
    max_tokens: int,
    progress: Callable[[int, int], None],
) -> SplicedCertificate:
    """Compare a dense model with the one that has MoE layers in its place, in float32, both in memory.

    Args:
        dense, moe: folders. moe_config, dense_config, record: their config.json, and the MoE's moesaic.json.
        data: a file or folder of what the model reads; None takes built-in passages, or random inputs where the model
            reads no text. max_tokens: compared, about. progress: called with (FFNs run, FFNs in all).

    Raises:
        CertificateError: if the dense model is of another class or size, if a weight is left over or missing, if an FFN
            is not what was found, or if a promised function is not kept.
    """
    entries = moe_config[SECTION]["sites"]
    check_spliced_class(dense, dense_config, moe_config[SECTION]["class_name"], record)
    models = [load(dense, dense_config, torch.float32), load(moe, moe_config, torch.float32)]
    check_spliced_sizes(dense, models, entries, record)
    recorded = is_source(DenseCheckpoint.open(dense), record)
    batches = open_batches(dense, models[0], data, max_tokens)
    compared: dict[str, Comparison] = {}
    share = math.ceil(SAMPLE / len(batches.feeds))
    layers = [_Layer(number, one, share) for number, one in zip(record["spec"]["moe_layers"], entries, strict=True)]
    steps = 2 * len(layers) * len(batches.feeds)
    with quiet():
        for feed in batches.feeds:
            with _watched(models[0], layers, feed, dense=True):
                first = dict(answer(models[0], feed, whole=batches.whole))
            progress(len(layers), steps)
            with _watched(models[1], layers, feed, dense=False):
                second = dict(answer(models[1], feed, whole=batches.whole))
            progress(len(layers), steps)
            for name, value in first.items():
                compared.setdefault(name, Comparison(name)).add(value, second[name], feed)
    _check_all_ran(layers)
    for layer in layers:
        layer.compare_experts(models[1])
    whole = _main(compared)
    is_logits = whole.output == LOGITS
    found = SplicedCertificate(
        data=batches.name,
        tokens=whole.cosine.count,
        output=whole.output,
        max_diff=figures(whole.max_diff, NOISE * max(whole.max_value, 1e-30)),
        max_value=figures(whole.max_value),
        cosine=round(whole.cosine.value, 9),
        kl=figures(whole.kl.value, TINY) if is_logits else None,
        agreement=round(whole.agreement.value, 4) if is_logits else None,
        promised=bool(record["preserves_function"]),
        rounds_to=record.get("rounds_to"),
        layers=[layer.row() for layer in layers],
        is_source=recorded,
    )
    for each in compared.values() if recorded else ():
        hold_to_promise(broken(record, each.output, each.max_diff, each.max_value), found.to_json())
    return found


@dataclass
class _Layer:
    """One MoE layer while it is watched in both models; `dense_y` waits for the MoE's.

    Args:
        share: tokens of each batch that `sample` takes, spread over it: neighbours in a text or picture are alike.
    """

    number: int
    entry: Mapping[str, Any]
    share: int
    tally: LayerTally = field(default_factory=LayerTally)
    dense_y: list[torch.Tensor] = field(default_factory=list)
    sample: list[torch.Tensor] = field(default_factory=list)
    alike: tuple[float, float] | None = None
    diversity: float = 0.0

    @property
    def site(self) -> Site:
        return Site.from_json({key: value for key, value in self.entry.items() if key in Site.__dataclass_fields__})

    def compare_experts(self, moe: torch.nn.Module) -> None:
        """See how alike the experts are, in what they make of the sample and in their weights."""
        module: Any = moe.get_submodule(self.site.last)
        if self.sample:  # data of one kind do not run all towers
            self.alike = _alike(module, torch.cat(self.sample))
        self.diversity = mean_distance(list(module.experts.down_proj.detach()))

    def row(self) -> dict[str, Any]:
        """Return its row in the certificate."""
        self.tally.diversity = self.diversity
        found = {"layer": self.number, "ffn": self.site.last, **layer_row(self.tally)}
        if self.alike:
            found |= {"expert_cosine": round(self.alike[0], 4), "expert_cka": round(self.alike[1], 4)}
        return found


@contextmanager
def _watched(model: torch.nn.Module, layers: list[_Layer], feed: Feed, *, dense: bool) -> Iterator[None]:
    """Watch the FFNs of the dense model, or the MoE layers in their place."""
    handles = [handle for layer in layers for handle in (_dense if dense else _sparse)(model, layer, feed)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dense(model: torch.nn.Module, layer: _Layer, feed: Feed) -> Iterator[Any]:
    site = layer.site
    inputs: list[torch.Tensor] = []

    def took(_module: Any, args: Any) -> None:
        inputs.append(args[0].detach())

    def gave(_module: Any, _args: Any, y: torch.Tensor) -> None:
        rows = match(feed, y.numel() // y.shape[-1], y.device)
        x_TD, y_TD = rows.of(inputs.pop()), rows.of(y)
        places = torch.linspace(0, len(x_TD) - 1, min(layer.share, len(x_TD))).long()
        if not layer.sample:
            _check_found(model, site, x_TD[places], y_TD[places])
        layer.sample.append(x_TD[places])
        layer.dense_y.append(y_TD)

    yield model.get_submodule(site.first[0]).register_forward_pre_hook(took)
    yield model.get_submodule(site.last).register_forward_hook(gave)


def _check_found(model: torch.nn.Module, site: Site, x_TD: torch.Tensor, y_TD: torch.Tensor) -> None:
    """Make sure that the FFN as it was found in a tiny twin is the one that the real model runs."""
    with torch.no_grad():
        largest = y_TD.abs().amax().clamp_min(torch.finfo(y_TD.dtype).tiny)  # an FFN may be all zero
        off = float((dense_ffn(model, site)(x_TD, activation(site)) - y_TD).abs().amax() / largest)
    if not off <= FAITHFUL:
        raise CertificateError(
            f"{site.last}: the FFN must compute what was found ({site.layout}, {site.act}). Got a difference of "
            f"{off:.2g} of its largest output. Please report this model."
        )


def _sparse(model: torch.nn.Module, layer: _Layer, feed: Feed) -> Iterator[Any]:
    module: Any = model.get_submodule(layer.site.last)

    def gave(_module: Any, _args: Any, y: torch.Tensor) -> None:
        rows = match(feed, y.numel() // y.shape[-1], y.device)
        layer.tally.add(layer.dense_y.pop(0), rows.of(y))

    def routed(_module: Any, _args: Any, logits_TE: torch.Tensor) -> None:
        rows = match(feed, len(logits_TE), logits_TE.device)
        normalize = layer.entry["normalize_gates"]
        layer.tally.route(Routing.from_logits(rows.of(logits_TE), layer.entry["top_k"], normalize=normalize))

    yield module.register_forward_hook(gave)
    yield module.router.register_forward_hook(routed)


def _alike(module: Any, x_TD: torch.Tensor) -> tuple[float, float]:
    """Return mean cosine and mean linear CKA of what two experts make of the same tokens."""
    ones_T1 = torch.ones(len(x_TD), 1)
    count = module.router.weight.shape[0]
    with torch.no_grad():
        y_ETD = torch.stack([module.experts(x_TD, torch.full((len(x_TD), 1), e), ones_T1) for e in range(count)])
    return output_cosine(y_ETD), linear_cka(y_ETD)


def _check_all_ran(layers: list[_Layer]) -> None:
    """Refuse a certificate that says nothing of some MoE layer, as one on text alone would of a vision tower."""
    if idle := [layer.site.last for layer in layers if not layer.tally.cosine.count]:
        raise CertificateError(
            "The data must reach every MoE layer. These never ran; pass --data of what their tower reads, choose by "
            f"--tower, or leave the certificate out with --no-certify:\n{listing(idle)}"
        )


def _main(compared: Mapping[str, Comparison]) -> Comparison:
    """Return the output that says most about the model: the first of MAIN, or else any, that the MoE layers reach."""
    if not compared:
        raise CertificateError("The model must give a floating-point output to compare. It gives none.")
    ordered = [compared[name] for name in dict.fromkeys((*MAIN, *compared)) if name in compared]
    return next((one for one in ordered if one.max_diff > 0), ordered[0])
