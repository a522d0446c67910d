"""What a diagnosis says, as plain data: exactly what stands in its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

SCHEMA = "moesaic.diagnosis/1"
Table = tuple[tuple[float, ...], ...]
Routes = Mapping[str, tuple[tuple[int, ...], ...]]
"""Path of a layer -> the experts of each token, best first."""
Gates = Mapping[str, Table]


@dataclass(frozen=True)
class Shown:
    """The data that a model was run on.

    Args:
        name: of the data. tokens: routed, in the layer that met most. sequences: texts, images or clips.
        groups: labels of the data, in the order of their indices.
    """

    name: str
    tokens: int
    sequences: int
    groups: tuple[str, ...]


@dataclass(frozen=True)
class WeightSimilarity:
    """Cosines of experts' weights.

    Args:
        matched: after undoing permutations of neurons; None where it was left out. plain: neuron j with neuron j.
        dense: of each expert to the dense FFN, neurons matched; None where that is not at hand or it was left out.
        error: how much larger a matched cosine may be at most; 0 where the best matching was found.
    """

    matched: Table | None
    plain: Table
    dense: tuple[float, ...] | None
    error: float


@dataclass(frozen=True)
class Geometry:
    """Router rows and router inputs, each of length 1, in the plane of their first two principal components.

    Args:
        centroids: x, y of each router row. tokens: x, y, best expert, index of the token among the layer's tokens of
            the sample, one sequence after the other; -1 where it is not shown. explained: share of variance by axis.
    """

    centroids: tuple[tuple[float, float], ...]
    tokens: tuple[tuple[float, float, int, int], ...]
    explained: tuple[float, float]


@dataclass(frozen=True)
class LayerDiagnosis:
    """One MoE layer, E experts of which each token chooses K.

    Args:
        path: of the module. number: the first integer of the path, or else its place among the MoE layers.
        tokens: routed. entropy: mean entropy of the router's probabilities / ln E. top1: mean highest probability.
        margin: mean of highest minus second. load_cv: coefficient of variation of the load. max_violation: highest load
            over the fair share, minus 1. information: of a token's group and an expert it is sent to, nats.
        dead: experts with less than 1 % of the fair share. load: share of assignments. load_by_group: the same for
            each group that has tokens. confidence_histogram: share of tokens by highest probability, steps of 0.05.
        coactivation: share of tokens that chose both; diagonal: chose it. router_condition: None where it is infinite.
        diversity: 1 - mean pairwise cosine of the experts' last linears (SPRI's). output_cosine, cka: of outputs on
            the same sampled tokens. peak: largest absolute output for the sampled tokens that chose the expert.
        top_tokens: text, share of its occurrences that chose the expert, how many.
    """

    path: str
    number: int
    experts: int
    top_k: int
    tokens: int
    entropy: float
    top1: float
    margin: float
    load_cv: float
    max_violation: float
    information: float | None
    dead: tuple[int, ...]
    load: tuple[float, ...]
    load_by_group: Mapping[str, tuple[float, ...]]
    confidence_histogram: tuple[float, ...]
    coactivation: Table
    router_condition: float | None
    diversity: float
    weight_similarity: WeightSimilarity
    output_cosine: Table | None
    cka: Table | None
    peak: tuple[float, ...]
    geometry: Geometry
    top_tokens: tuple[tuple[tuple[str, float, int], ...], ...]


@dataclass(frozen=True)
class TextSample:
    """A text, and where its tokens went; in the decoder of an encoder-decoder, place t reads the token before."""

    title: str
    tokens: tuple[str, ...]
    experts: Routes
    weights: Gates


@dataclass(frozen=True)
class ImageSample:
    """An image as the model sees it (a data URI), and where its patches went, row by row; `grid`: rows, columns."""

    title: str
    png: str
    grid: tuple[int, int]
    experts: Routes


@dataclass(frozen=True)
class AudioSample:
    """A recording, its wave as peaks of 0-1, and where its frames went, evenly over time.

    Args:
        tokens: what the decoder reads; its layers have a place for each of these.
    """

    title: str
    seconds: float
    wave: tuple[float, ...]
    tokens: tuple[str, ...]
    experts: Routes


@dataclass(frozen=True)
class Sample:
    """Some of the data, token by token."""

    texts: tuple[TextSample, ...] = ()
    images: tuple[ImageSample, ...] = ()
    audio: tuple[AudioSample, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """How the experts of a model are used, and what tells them apart, layer by layer.

    Args:
        model: its name. kind: what it reads: text, image, audio, image-text, audio-text.
        experts, top_k: by the path of each MoE layer. data: what it was run on. layers: those that ran.
    """

    model: str
    kind: str
    experts: Mapping[str, int]
    top_k: Mapping[str, int]
    data: Shown
    layers: tuple[LayerDiagnosis, ...]
    sample: Sample

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON values; `from_json` is the inverse."""
        return {"schema": SCHEMA, **_plain(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Diagnosis:
        """Read what `to_json` wrote.

        Raises:
            ValueError: where it is of another schema, or a field is unknown or missing.
        """
        if values.get("schema") != SCHEMA:
            raise ValueError(
                f"Diagnosis: the schema must be {SCHEMA!r}. Got {values.get('schema')!r}. Make the file with "
                "`moesaic.diagnose` of this version."
            )
        rest = _checked(cls, {key: value for key, value in values.items() if key != "schema"})
        return cls(
            **{
                **rest,
                "data": Shown(**_checked(Shown, values["data"])),
                "layers": tuple(_layer(one) for one in values["layers"]),
                "sample": _sample(values["sample"]),
            }
        )

    def layer(self, path: str) -> LayerDiagnosis:
        """Return the layer at a path.

        Raises:
            KeyError: where none of that path ran.
        """
        for one in self.layers:
            if one.path == path:
                return one
        raise KeyError(f"{path}: no such layer among {[one.path for one in self.layers]}")


def _layer(values: Mapping[str, Any]) -> LayerDiagnosis:
    parts = {
        "weight_similarity": WeightSimilarity(**_checked(WeightSimilarity, values["weight_similarity"])),
        "geometry": Geometry(**_checked(Geometry, values["geometry"])),
    }
    return LayerDiagnosis(**{**_checked(LayerDiagnosis, values), **parts})


def _sample(values: Mapping[str, Any]) -> Sample:
    def each(kind: type[Any], rows: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
        return tuple(kind(**_checked(kind, row)) for row in rows)

    _checked(Sample, values)
    return Sample(
        each(TextSample, values["texts"]), each(ImageSample, values["images"]), each(AudioSample, values["audio"])
    )


def _checked(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record with lists as tuples."""
    known = {field.name for field in fields(kind)}
    if set(values) != known:
        odd = sorted(set(values) ^ known)
        raise ValueError(f"{kind.__name__}: keys must be {sorted(known)}. Unknown or missing: {odd}.")
    return {key: _frozen(value) for key, value in values.items()}


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(one) for one in value)
    return {key: _frozen(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value
