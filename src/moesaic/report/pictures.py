"""The page's figures for papers, by matplotlib: each as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.errors import ReportError
from moesaic.lazy import np
from moesaic.report.curves import points_of
from moesaic.report.fitting import evenly
from moesaic.report.gathering import checked

COLOURS = ("#0072B2", "#D55E00")
"""Of the first and the second model; of Okabe and Ito: told apart by the colour-blind, too."""
HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C8C8C")
"""Of experts; they repeat after eight."""
PANELS = 12
"""Layers in a figure that has a panel for each; of more, so many are evenly chosen."""
MEASURES = {
    "entropy": "router entropy / ln E",
    "top1": "mean highest probability",
    "margin": "highest less second probability",
    "load_cv": "load: coefficient of variation",
    "max_violation": "highest load / fair share - 1",
    "information": "information on the group, nats",
}
MATRICES = {
    "matched": "cosine of weights, neurons matched",
    "plain": "cosine of weights, as they lie",
    "output_cosine": "cosine of outputs",
    "cka": "linear CKA of outputs",
    "coactivation": "share of tokens that chose both",
}
Model = Mapping[str, Any]


def pictures(
    folder: Path, diagnosis: Model, run: Mapping[str, Any] | None = None, against: Model | None = None
) -> list[Path]:
    """Draw every figure that there are numbers for; return the files.

    Args:
        folder: is made. The others as `page` takes them.

    Raises:
        ReportError: where matplotlib is missing, or a diagnosis is not whole.
    """
    models = [checked(one, "diagnosis") for one in (diagnosis, against) if one is not None]
    with _drawing():
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _save(figure, folder / f"{name}.{ending}")
            for name, figure in _figures(models, run)
            for ending in ("png", "svg")
        ]


def main_picture(file: Path, diagnosis: Model) -> Path:
    """Draw the figure that tells most in one look, load by layer and expert, as PNG; return the file.

    Raises:
        ReportError: where matplotlib is missing, or the diagnosis is not whole.
    """
    with _drawing():
        return _save(_load(checked(diagnosis, "diagnosis")), file)


def _drawing() -> Any:
    """Return the settings under which the same numbers give the same bytes."""
    try:
        from matplotlib import rc_context  # noqa: PLC0415  # an extra
    except ImportError:
        raise ReportError("figures: matplotlib must be installed. Got none. pip install 'moesaic[study]'") from None
    return rc_context({"svg.hashsalt": "moesaic", "svg.fonttype": "none", "text.parse_math": False, "font.size": 9})


def _save(figure: Any, file: Path) -> Path:
    """Write a figure as what its ending says; it is laid out once, not for each file."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    metadata = {"Software": None} if file.suffix == ".png" else {"Date": None}
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format=file.suffix[1:], dpi=200, metadata=metadata)
    return partial.replace(file)


def _figures(models: Sequence[Model], run: Mapping[str, Any] | None) -> Iterator[tuple[str, Any]]:
    for model, ending in zip(models, ("", "-against"), strict=False):
        yield f"load{ending}", _load(model)
        for kind, label in MATRICES.items():
            if any(_matrix(layer, kind) for layer in model["layers"]):
                yield f"{kind.replace('_', '-')}{ending}", _matrices(model, kind, label)
        if any(layer.get("geometry") for layer in model["layers"]):
            yield f"geometry{ending}", _by_layer(model, lambda one: bool(one.get("geometry")), _geometry)
    yield "measures", _measures(models)
    if run and run["rows"]:
        yield "training", _training(run)


def _new(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

    return Figure(figsize=(width, height), layout="constrained")


def _load(model: Model) -> Any:
    """Draw load over fair share, a row a layer, on a logarithmic scale."""
    layers = model["layers"]
    fair = np.full((len(layers), max(one["experts"] for one in layers)), np.nan)
    for place, one in enumerate(layers):
        fair[place, : one["experts"]] = np.asarray(one["load"], float) * one["experts"]
    figure = _new(7, max(2.2, 1.2 + 0.14 * len(layers)))  # room for the words beside the bar
    axes = figure.add_subplot()
    shown = axes.imshow(np.log2(np.clip(fair, 1 / 8, 8)), cmap="PuOr", vmin=-3, vmax=3, aspect="auto")
    bar = figure.colorbar(shown, ax=axes, label="load / fair share")
    bar.set_ticks([-3, -1, 0, 1, 3], labels=["1/8", "1/2", "1", "2", "8"])
    kept = evenly(range(len(layers)), 16)
    axes.set_yticks(kept, [layers[place]["number"] for place in kept])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="expert", ylabel="layer")
    return figure


def _measures(models: Sequence[Model]) -> Any:
    """Draw each measure over the layers, a panel each."""
    figure = _new(7, 4.2)
    for place, (key, label) in enumerate(MEASURES.items()):
        axes = figure.add_subplot(2, 3, place + 1)
        for model, colour, line in zip(models, COLOURS, ("-", "--"), strict=False):
            rows = [(one["number"], one[key]) for one in model["layers"] if one.get(key) is not None]
            axes.plot([x for x, _ in rows], [y for _, y in rows], line, color=colour, marker=".", label=model["model"])
        axes.set(xlabel="layer", title=label)
        axes.title.set_size(8)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(models) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _matrix(layer: Mapping[str, Any], kind: str) -> Any:
    home = (layer.get("weight_similarity") or {}) if kind in ("matched", "plain") else layer
    return home.get(kind)


def _matrices(model: Model, kind: str, label: str) -> Any:
    """Draw experts by experts on one scale; of co-activation without the diagonal, which would outshine the rest."""

    def values(layer: Mapping[str, Any]) -> np.ndarray:
        rows_EE = np.array(_matrix(layer, kind), float)
        if kind == "coactivation":
            np.fill_diagonal(rows_EE, np.nan)
        return rows_EE

    found = [values(layer) for layer in model["layers"] if _matrix(layer, kind)]
    low = min([0.0, *(float(np.nanmin(one)) for one in found if np.isfinite(one).any())])
    high = max([1e-9, *(float(np.nanmax(one)) for one in found if np.isfinite(one).any())])

    def draw(axes: Any, layer: Mapping[str, Any]) -> None:
        axes.imshow(values(layer), cmap="cividis", vmin=low, vmax=high)

    figure = _by_layer(model, lambda one: bool(_matrix(one, kind)), draw)
    figure.colorbar(figure.axes[0].images[0], ax=figure.axes, label=label, shrink=0.6)
    return figure


def _geometry(axes: Any, layer: Mapping[str, Any]) -> None:
    """Draw what routers read, in the colours of who gets it, and the routers' rows."""
    tokens = np.array([token[:3] for token in layer["geometry"]["tokens"]], float).reshape(-1, 3)
    axes.scatter(tokens[:, 0], tokens[:, 1], s=4, alpha=0.5, c=[HUES[int(expert) % 8] for expert in tokens[:, 2]])
    for expert, (x, y) in enumerate(layer["geometry"]["centroids"]):
        axes.annotate(str(expert), (x, y), weight="bold", ha="center", va="center")
    first, second = layer["geometry"]["explained"]
    axes.set(xlabel=f"component 1 ({first:.0%})", ylabel=f"component 2 ({second:.0%})")


def _by_layer(
    model: Model, has: Callable[[Mapping[str, Any]], bool], draw: Callable[[Any, Mapping[str, Any]], None]
) -> Any:
    """Draw a panel for each layer that has something to show, or for some of them."""
    layers = evenly([one for one in model["layers"] if has(one)], PANELS)
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    figure = _new(2.6 * columns, 2.4 * rows + 0.3)
    for place, layer in enumerate(layers):
        axes = figure.add_subplot(rows, columns, place + 1)
        draw(axes, layer)
        axes.set_title(f"layer {layer['number']}", size=8)
    return figure


def _training(run: Mapping[str, Any]) -> Any:
    """Draw the loss, trained on and held out, over the stages."""
    figure = _new(5, 3)
    axes = figure.add_subplot()
    points = points_of(run)
    for name, colour, line in (("loss", COLOURS[0], "-"), ("eval/loss", COLOURS[1], "--")):
        if found := points.get((name, "")):
            axes.plot([x for x, _ in found], [y for _, y in found], line, color=colour, label=name)
    for stage in run["stages"][:-1]:
        axes.axvline(stage["until"] * run["steps"], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
    return figure
