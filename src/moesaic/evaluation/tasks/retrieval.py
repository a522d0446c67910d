"""Images by their texts, and texts by their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesaic.calibration.data import Source
from moesaic.errors import EvaluationError
from moesaic.evaluation.base import EvaluationTask, Opened, Place, hash_of
from moesaic.evaluation.features import Towers, open_towers
from moesaic.evaluation.intervals import Record
from moesaic.evaluation.ranking import loss_of, mean_loss, rank_of, within
from moesaic.evaluation.rows import check_texts, images_of, open_rows, sources_of
from moesaic.lazy import torch
from moesaic.training.tasks.tables import Row, Table

AT = (1, 5, 10)
DIRECTIONS = ("image to text", "text to image")


@dataclass(frozen=True)
class Retrieval(EvaluationTask):
    """Finds the texts of an image among all texts, and the images of a text among all images.

    For dual encoders such as CLIP. Rows have `image` and `text`; a folder of images has each text in a .txt file of the
    same name. Rows with the same image (by path, or else by `source`) are one image with several texts, and equal
    texts are one text with several images; a query finds what it should if any of them is among the first k. Each
    distinct image and text is a query; those of one `source` (or else one image) are resampled together. Beside
    recall@k stands the loss, nats a query: contrastive training's, with all candidates in one batch, which has less
    noise.

    Reference: Karpathy and Fei-Fei 2015, arXiv 1412.2306, section 4.2 (recall@k in both directions); Radford et al.
    2021, arXiv 2103.00020, figure 3 (the loss, with the model's temperature).
    Deviates: equal texts are one, as no model can tell them apart; both directions together are given, too.
    """

    def open(self, place: Place, data: Source | None) -> Opened:
        """Load model and rows, and compute the features of the texts.

        Raises:
            EvaluationError: where images or texts are missing, there is one image or text only, or the model has no
                towers.
        """
        table = open_rows(self.name(), data, "image", "image", "text")
        check_texts(table, "text")
        pairs = pairs_of(table)
        if min(len(pairs.images), len(pairs.texts)) < 2:
            raise EvaluationError(
                f"{table.name}: there must be two different images and texts or more to choose among. Got "
                f"{len(pairs.images)} and {len(pairs.texts)}. Add pairs."
            )
        towers = open_towers(place, self.name())
        texts_ND = towers.texts(pairs.texts)
        gallery = Gallery(towers, [table[n] for n in pairs.rows], place.batch_size)
        split, scale = len(pairs.images), towers.scale()

        def measure(places: Sequence[int]) -> list[Record]:
            if places[0] < split:
                scores_BN = gallery.images(places) @ texts_ND.T
            else:
                scores_BN = texts_ND[[n - split for n in places]] @ gallery.images(range(split)).T
            return [
                {
                    "rank": rank_of(row_N, pairs.right[n]),
                    "nats": loss_of(scale * row_N, pairs.right[n]),
                    "group": DIRECTIONS[n >= split],
                    "cluster": pairs.sources[n],
                }
                for n, row_N in zip(places, scores_BN, strict=True)
            ]

        ids = [*(f"image {name}" for name in pairs.images), *(f"text {name}" for name in pairs.texts)]
        texts = [
            list(range(start, min(start + place.batch_size, len(ids))))
            for start in range(split, len(ids), place.batch_size)
        ]
        metrics = (*(within(k, f"recall@{k}") for k in AT), mean_loss("loss"))
        candidates = hash_of(sorted(pairs.images), sorted(pairs.texts))
        return Opened(ids, measure, metrics, [*gallery.batches, *texts], beside=candidates)


@dataclass(frozen=True)
class Pairs:
    """Which texts belong to which images.

    Args:
        images, texts: distinct ones, in the order in which they first come. rows: the first row of each image.
        right: of each query, images first, then texts: places of what is to be found. sources: of each query.
    """

    images: tuple[str, ...]
    texts: tuple[str, ...]
    rows: tuple[int, ...]
    right: tuple[tuple[int, ...], ...]
    sources: tuple[str, ...]


def pairs_of(table: Table) -> Pairs:
    """Return the queries that rows hold."""
    images, texts = images_of(table), [str(text) for text in table.column("text")]
    sources = sources_of(table, images)
    rows = {name: n for n, name in reversed(list(enumerate(images)))}
    first = {name: n for n, name in reversed(list(enumerate(texts)))}
    names, words = tuple(dict.fromkeys(images)), tuple(dict.fromkeys(texts))
    image_at, text_at = ({key: n for n, key in enumerate(keys)} for keys in (names, words))
    right: list[dict[int, None]] = [{} for _ in range(len(names) + len(words))]  # dictionaries keep the order
    for image, text in zip(images, texts, strict=True):
        right[image_at[image]][text_at[text]] = None
        right[len(names) + text_at[text]][image_at[image]] = None
    return Pairs(
        names,
        words,
        tuple(rows[name] for name in names),
        tuple(tuple(found) for found in right),
        tuple(sources[n] for n in (*(rows[name] for name in names), *(first[text] for text in words))),
    )


class Gallery:
    """The features of all images, each batch of which is computed once, whoever asks first.

    Args:
        rows: one an image. size: of a batch.
    """

    def __init__(self, towers: Towers, rows: Sequence[Row], size: int) -> None:
        self._towers, self._rows = towers, rows
        self.batches = [list(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size)]
        self._found: dict[int, torch.Tensor] = {}

    def images(self, places: Sequence[int]) -> torch.Tensor:
        """Return the features of images, float32 [N, D]."""
        wanted = set(places)
        for batch in self.batches:
            if wanted & set(batch) - set(self._found):
                self._found |= dict(zip(batch, self._towers.images([self._rows[n] for n in batch]), strict=True))
        return torch.stack([self._found[n] for n in places])
