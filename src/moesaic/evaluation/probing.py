"""Classifiers on a few frozen features: drawn supports, logistic regression, prototypes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from moesaic.errors import EvaluationError, listing
from moesaic.lazy import np
from moesaic.seeds import Stream

Classifier = Literal["logistic", "prototype"]
Predict = Callable[["np.ndarray"], "np.ndarray"]
"""From features [N, D] to the numbers of classes [N]."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse regularisation that cross-validation chooses among."""
ALONE = 0.1
"""The one that is taken where one shot a class leaves nothing to validate on."""
FOLDS = 5
ITERATIONS = 1000


@dataclass(frozen=True)
class Support:
    """What one draw learns from: places in the pool, and the class of each."""

    places: tuple[int, ...]
    classes: tuple[int, ...]


def supports(classes: Sequence[int], names: Sequence[str], shots: int, draws: int, seed: int) -> list[Support]:
    """Return what each draw learns from: so many of each class, without replacement.

    Args:
        classes: of everything in the pool. names: of the classes.

    Raises:
        EvaluationError: where a class has fewer than `shots`.
    """
    members = {number: [n for n, own in enumerate(classes) if own == number] for number in range(len(names))}
    few = [f"{names[number]}: {len(found)}" for number, found in members.items() if len(found) < shots]
    if few:
        raise EvaluationError(
            f"few_shot: every class must have {shots} examples to learn from. Got fewer:\n{listing(few, 5)}\n"
            "Lower shots, or add examples to the part that is learned from."
        )
    return [_draw(members, shots, Stream(seed, ("few_shot", draw))) for draw in range(draws)]


def _draw(members: dict[int, list[int]], shots: int, stream: Stream) -> Support:
    chosen = {
        number: [found[n] for n in stream.child(number).permutation(len(found))[:shots]]
        for number, found in members.items()
    }
    return Support(
        tuple(place for places in chosen.values() for place in places),
        tuple(number for number, places in chosen.items() for _ in places),
    )


def fit(classifier: Classifier, features_ND: np.ndarray, classes_N: Sequence[int]) -> Predict:
    """Return a classifier of features like these."""
    return {"logistic": logistic, "prototype": prototype}[classifier](features_ND, np.array(classes_N))


def prototype(features_ND: np.ndarray, classes_N: np.ndarray) -> Predict:
    """Take the class whose mean has the largest cosine with the features, each brought to length 1 before.

    Reference: Snell et al. 2017, arXiv 1703.05175. Deviates: cosine in the place of Euclidean distance.
    """
    means_CD = np.stack([_unit(features_ND[classes_N == number]).mean(0) for number in np.unique(classes_N)])

    def predict(x_ND: np.ndarray) -> np.ndarray:
        found: np.ndarray = (_unit(x_ND) @ _unit(means_CD).T).argmax(1)
        return found

    return predict


def logistic(features_ND: np.ndarray, classes_N: np.ndarray) -> Predict:
    """Fit multinomial logistic regression on standardised features; cross-validation on them chooses its strength.

    Of one shot a class, too few to tell how far each feature spreads, all features are scaled alike.
    """
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # noqa: PLC0415  # a second
    from sklearn.model_selection import GridSearchCV, StratifiedKFold  # type: ignore[import-untyped]  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]  # noqa: PLC0415

    folds = min(FOLDS, int(np.bincount(classes_N).min()))
    scale = 1.0 if folds > 1 else float(np.sqrt(features_ND.var(0).mean())) or 1.0
    model = make_pipeline(StandardScaler(with_std=folds > 1), LogisticRegression(C=ALONE, max_iter=ITERATIONS))
    if folds > 1:
        grid = {"logisticregression__C": STRENGTHS}
        model = GridSearchCV(model, grid, cv=StratifiedKFold(folds), scoring="neg_log_loss")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the optimum need not be met to the last digit
        model.fit(features_ND / scale, classes_N)

    def predict(x_ND: np.ndarray) -> np.ndarray:
        found: np.ndarray = model.predict(x_ND / scale)
        return found

    return predict


def _unit(x_ND: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x_ND / np.maximum(np.linalg.norm(x_ND, axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return unit
