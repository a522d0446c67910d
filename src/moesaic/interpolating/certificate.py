"""The certificate of a model with tables: the same model with and without them, on the same data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesaic.calibration.data import Source
from moesaic.calibration.readers import kinds
from moesaic.calibration.rows import match
from moesaic.certification import HELD
from moesaic.certification.batches import answer, open_batches
from moesaic.certification.certificate import NOISE, TINY, figures, or_less
from moesaic.certification.spliced import LOGITS, MAIN, Comparison
from moesaic.certification.tally import LayerTally, Mean, Tally
from moesaic.certification.text import Batch, Text
from moesaic.errors import NliError
from moesaic.interpolating.applying import Applied
from moesaic.interpolating.profile import Profile, warnings
from moesaic.interpolating.sites import KINDS, Site
from moesaic.lazy import torch
from moesaic.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_ROWS = 2048  # logits compared by a language model's batch at once, at least


@dataclass(frozen=True)
class InterpolationCertificate:
    """A model without tables against itself with them.

    Args:
        data: what was read. tokens: compared, of the output. output: what the figures are of.
        max_diff, max_value: of it, over everything.
        kl: KL(without || with) in nats per token, agreement: share with the same best class, 0-1; where it is logits.
        loss, loss_with: next-token cross-entropy, nats per token, of a language model; else None.
        perplexity, perplexity_with: of the same. perplexity_change: percent.
        layers: after each block that holds a site: cosine, ratio of norms, and mean relative error of the output.
        sites: every site, swapped or left alone. profiles: what tables were asked for. warnings: where they could not
            answer well.
    """

    data: str
    tokens: int
    output: str
    max_diff: float
    max_value: float
    kl: float | None
    agreement: float | None
    loss: float | None
    loss_with: float | None
    perplexity: float | None
    perplexity_with: float | None
    perplexity_change: float | None
    layers: tuple[Mapping[str, Any], ...]
    sites: tuple[Site, ...]
    profiles: tuple[Profile, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        plain = {name: value for name, value in asdict(self).items() if name not in ("sites", "profiles")}
        return {
            "summary": dict(self.rows()),
            **plain,
            "sites": [site.to_json() for site in self.sites],
            "profiles": [profile.to_json() for profile in self.profiles],
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the short table: quantity, value with its unit."""
        share = self.max_diff / max(self.max_value, 1e-30)
        table = [
            *site_rows(self.sites),
            ("data", f"{self.data}, {self.tokens:,} tokens of {self.output}"),
            ("max difference", f"{self.max_diff:.3g} ({share:.1g} of {self.max_value:.3g}, the largest)"),
        ]
        if self.kl is not None and self.agreement is not None:
            table.append(("KL(without || with)", f"{or_less(self.kl)} nats per token"))
            table.append(("top-1 agreement", f"{100 * self.agreement:.2f} %"))
        if self.loss is not None and self.perplexity is not None and self.perplexity_change is not None:
            table.append(("loss without -> with", f"{self.loss:.5f} -> {self.loss_with:.5f} nats per token"))
            change = f"{self.perplexity:.4f} -> {self.perplexity_with:.4f} ({self.perplexity_change:+.3f} %)"
            table.append(("perplexity without -> with", change))
        if self.layers:
            worst = max(self.layers, key=lambda row: row["error"])
            table.append(("largest relative error of a layer", f"{worst['error']:.2g} ({worst['layer']})"))
        return table


def site_rows(sites: Sequence[Site]) -> list[tuple[str, str]]:
    """Return one row for each kind of site with its functions, and one for all that was left alone."""
    by_kind = {kind: Counter(site.call for site in sites if site.swapped and site.kind == kind) for kind in KINDS}
    rows = [(f"{kind}, by tables", _counted(calls)) for kind, calls in by_kind.items() if calls]
    alone = Counter(f"{site.call} ({site.alone})" for site in sites if not site.swapped)
    return [*rows, ("left alone", _counted(alone))] if alone else rows


def certify(
    folder: str | Path,
    done: Applied,
    data: Source | None = None,
    *,
    max_tokens: int = 4096,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> InterpolationCertificate:
    """Run a model without and with its tables, and write down what they change.

    Args:
        folder: of the model, for its tokenizer or processor. done: what was applied to it.
        data: a file or folder of what it reads; None: built-in passages, or random inputs where it reads no text.
        max_tokens: compared, about. progress: called with (batches run since the last call, batches in all).

    Raises:
        NliError: where the output with tables is not finite. CertificateError: where the data can't be read.
    """
    model: Any = done.model
    name, steps = _steps(Path(folder), model, data, max_tokens)
    counts = _Counts()
    places = _places(done)
    with quiet(), done.profiled() as profiles:
        for step in steps:
            with done.paused(), _seen(places) as before:
                first = step.run()
            with _seen(places) as after:
                second = step.run()
            counts.add(step, first, second, before, after)
            progress(1, len(steps))
    return counts.certificate(name, done, profiles)


@dataclass(frozen=True)
class _Step:
    """One batch: how to run it, what of [..., C] is real, and its token ids where losses are counted."""

    run: Callable[[], dict[str, torch.Tensor]]
    real: Callable[[torch.Tensor], torch.Tensor]
    text: Batch | None = None
    feed: Any = None


@dataclass
class _Layer:
    tally: LayerTally = field(default_factory=LayerTally)
    error: Mean = field(default_factory=Mean)

    def add(self, before_TD: torch.Tensor, after_TD: torch.Tensor) -> None:
        self.tally.add(before_TD, after_TD)
        size_T = before_TD.double().norm(dim=-1)
        off_T = (after_TD.double() - before_TD.double()).norm(dim=-1)
        self.error.add(off_T[size_T > 0] / size_T[size_T > 0])

    def row(self, path: str) -> dict[str, Any]:
        cosine, ratio = round(self.tally.cosine.value, 9), round(self.tally.norm_ratio.value, 6)
        return {"layer": path, "cosine": cosine, "norm_ratio": ratio, "error": figures(self.error.value, TINY)}


@dataclass
class _Counts:
    """All that is counted while both run."""

    tally: Tally = field(default_factory=Tally)
    compared: dict[str, Comparison] = field(default_factory=dict)
    layers: dict[str, _Layer] = field(default_factory=dict)

    def add(
        self,
        step: _Step,
        first: Mapping[str, torch.Tensor],
        second: Mapping[str, torch.Tensor],
        before: Mapping[str, torch.Tensor],
        after: Mapping[str, torch.Tensor],
    ) -> None:
        for name, value in second.items():
            if bool(first[name].isfinite().all()) and not bool(value.isfinite().all()):
                raise NliError(f"The model with tables: {name} must be finite. Got NaN or infinity. Use wider tables.")
            if step.text is None:
                self.compared.setdefault(name, Comparison(name)).add(first[name], value, step.feed)
                continue
            for without_TV, with_TV, ids in zip(first[name], value, step.text.sequences, strict=True):
                self.tally.logits(without_TV[: len(ids)], with_TV[: len(ids)], torch.tensor(ids))
        for path, x in before.items():
            self.layers.setdefault(path, _Layer()).add(step.real(x), step.real(after[path]))

    def certificate(
        self, name: str, done: Applied, profiles: Mapping[tuple[str, str], Profile]
    ) -> InterpolationCertificate:
        whole = self._figures()
        noise = NOISE * max(whole["max_value"], 1e-30)
        return InterpolationCertificate(
            data=name,
            **{**whole, "max_diff": figures(whole["max_diff"], noise), "max_value": figures(whole["max_value"])},
            layers=tuple(layer.row(path) for path, layer in self.layers.items()),
            sites=tuple(done.sites.values()),
            profiles=tuple(profiles.values()),
            warnings=tuple(warnings(profiles, done.tables)),
        )

    def _figures(self) -> dict[str, Any]:
        losses = ("loss", "loss_with", "perplexity", "perplexity_with", "perplexity_change")
        if not self.compared:
            tally = self.tally
            loss, other = tally.dense_loss.value, tally.moe_loss.value
            perplexities = (math.exp(loss), math.exp(other), 100 * math.expm1(other - loss))
            return {
                "tokens": tally.kl.count,
                "output": LOGITS,
                "max_diff": tally.max_logit_diff,
                "max_value": tally.max_logit,
                "kl": figures(tally.kl.value, TINY),
                "agreement": round(tally.agreement.value, 4),
                **dict(zip(losses, (round(value, 6) for value in (loss, other, *perplexities)), strict=True)),
            }
        ordered = [self.compared[each] for each in dict.fromkeys((*MAIN, *self.compared)) if each in self.compared]
        whole = next((one for one in ordered if one.max_diff > 0), ordered[0])
        is_logits = whole.output == LOGITS
        return {
            "tokens": whole.cosine.count,
            "output": whole.output,
            "max_diff": whole.max_diff,
            "max_value": whole.max_value,
            "kl": figures(whole.kl.value, TINY) if is_logits else None,
            "agreement": round(whole.agreement.value, 4) if is_logits else None,
            **dict.fromkeys(losses),
        }


def _steps(folder: Path, model: PreTrainedModel, data: Source | None, max_tokens: int) -> tuple[str, list[_Step]]:
    """Return a name for the data and the batches: of a language model with losses, of any other without."""
    if _predicts_text(model):
        embedding: Any = model.get_input_embeddings()
        text = Text.read(folder, data, max_tokens, embedding.num_embeddings)
        rows = max(HELD // embedding.num_embeddings, 1)
        return text.name, [_text_step(model, batch) for batch in text.batches(min(rows, SAMPLE_ROWS))]
    batches = open_batches(folder, model, data, max_tokens)
    return batches.name, [_feed_step(model, feed, whole=batches.whole) for feed in batches.feeds]


def _predicts_text(model: PreTrainedModel) -> bool:
    causal = model.can_generate() and not model.config.is_encoder_decoder
    return causal and model.main_input_name == "input_ids" and kinds(model) == ("text",)


def _text_step(model: PreTrainedModel, batch: Batch) -> _Step:
    def run() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {LOGITS: model(input_ids=batch.ids().to(model.device), use_cache=False).logits.float().cpu()}

    return _Step(run, lambda x: batch.real(x.cpu()), text=batch)


def _feed_step(model: PreTrainedModel, feed: Any, *, whole: bool) -> _Step:
    def real(x: torch.Tensor) -> torch.Tensor:
        return match(feed, x.numel() // x.shape[-1], x.device).of(x)

    return _Step(lambda: dict(answer(model, feed, whole=whole)), real, feed=feed)


def _places(done: Applied) -> dict[str, torch.nn.Module]:
    """Return the blocks that hold a swapped site, by path: members of a list of modules, the outermost ones."""
    found: dict[str, torch.nn.Module] = {}
    for path, module in done.model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(path.startswith(f"{one}.") for one in found):
            for name, child in module.named_children():
                one = f"{path}.{name}"
                if any(site.path == one or site.path.startswith(f"{one}.") for site in done.swapped):
                    found[one] = child
    return found


@contextmanager
def _seen(places: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Keep what each block returns; where it runs several times, the last."""
    kept: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def came(_module: Any, _args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor) and first.ndim > 1:
                kept[path] = first.detach()

        return came

    handles = [module.register_forward_hook(keep(path)) for path, module in places.items()]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _counted(calls: Counter[str]) -> str:
    return ", ".join(f"{count} {call}" for call, count in calls.items())
