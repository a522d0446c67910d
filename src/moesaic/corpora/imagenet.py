"""ImageNet, for users who have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Part, Row, draw
from moesaic.corpora.yours import OwnCorpus, lines
from moesaic.errors import SourceError

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Imagenet(OwnCorpus):
    """Photographs in class folders, official splits: `image`, `label` and `text` (the first name of the class).

    Where two classes have one first name, as the bird and the machine `crane`, their labels end in the class folder.
    `train` is the training part, `val` the test part, as the field reports it; there is no validation part. Works for
    any data laid out as `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`.

    Args:
        data: the folder. names: a file of lines `CLASS name, other names`, in the folder; the classes' own names if
            it does not exist.
    """

    names: str = "LOC_synset_mapping.txt"

    licence: ClassVar[str] = "ImageNet's terms: research only"
    what: ClassVar[str] = "ImageNet from a folder of yours (--data): class folders in train and val"
    media: ClassVar[tuple[str, ...]] = ("image",)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows in an order drawn by hash."""
        if part == "validation":
            return
        split = folder / ("train" if part == "train" else "val")
        names = _names(folder / self.names)
        shared = Counter(names.values())
        found = [path for path in split.glob("*/*") if path.suffix.lower() in SUFFIXES]
        if not found:
            raise SourceError(
                f"{split}: it must hold a folder of pictures for each class. Got none. Sort them into such folders."
            )
        for path in sorted(found, key=lambda path: draw("rows", path.relative_to(split).as_posix())):
            own = path.parent.name
            name = names.get(own, own)
            label = f"{name} ({own})" if shared[name] > 1 else name
            inside = path.relative_to(folder).as_posix()
            yield {"image": inside, "label": label, "text": name, "class": own, "source": inside}


def _names(file: Path) -> dict[str, str]:
    """Return class -> its first name."""
    if not file.is_file():
        return {}
    pairs = (line.partition(" ") for _, line in lines(file))
    return {name: words.partition(",")[0].strip() for name, _, words in pairs if words.strip()}
