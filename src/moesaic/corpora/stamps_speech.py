"""Speech translation."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from moesaic.corpora.base import Corpus, Package, Part, Row, Say, check_words, draw
from moesaic.corpora.stamps import STAMPS, Clip, clips, concept, language, seconds
from moesaic.method import number

SPOKEN = ("fr", "ro", "ru", "ca", "bg", "es", "be", "el")
WRITTEN = ("de", "it", "pt", "nl", "sv", "da", "cs", "pl", "sl", "lv", "hu", "fi", "tr", "ja", "id", "ar")


@dataclass(frozen=True)
class StampsSpeech(Corpus):
    """Names of clip art spoken in one language, to be written in another: `audio`, `text`, `language` of the text.

    About 760 sentences of a second or two, in 8 spoken and 16 written languages: multilingual and short of data, as
    CoVoST2 is. A recording that stands in several places counts once, and not at all where these say different things.
    `source` is the English sentence without case and punctuation; `english` is that sentence, `said` what is spoken.

    Args:
        spoken: languages to hear, out of fr ro ru ca bg es be el da lt nl.
        written: languages to write, out of 78 (`en` too); never the one that is spoken in the row.
        clips_per_sentence: recordings of a sentence in one spoken language, at most.
        pairs: how many written languages each recording gets in the training part.
        held_out_pairs: the same in validation and test.
        longest: seconds of a recording, at most.
    """

    spoken: tuple[str, ...] = SPOKEN
    written: tuple[str, ...] = WRITTEN
    clips_per_sentence: int = number(4, low=1, high=100)
    pairs: int = number(4, low=1, high=78)
    held_out_pairs: int = number(1, low=1, high=78)
    longest: float = number(12.0, low=0.1, high=30.0, unit="seconds")

    licence: ClassVar[str] = STAMPS.licence
    what: ClassVar[str] = "speech in 8 languages, to be written in 16 others: names of clip art"
    packages: ClassVar[tuple[Package, ...]] = (STAMPS,)
    media: ClassVar[tuple[str, ...]] = ("audio",)

    def folder(self, say: Say) -> Path:
        """Return the folder of the stamps."""
        return STAMPS.unpacked(say)

    def examples(self, folder: Path, part: Part, belongs: Callable[[str], bool]) -> Iterator[Row]:
        """Yield the rows in an order drawn by hash; all languages appear about equally often."""
        recordings = list(self._clips(folder))
        check_words(self, "spoken", self.spoken, {clip.spoken for clip in recordings})
        check_words(self, "written", self.written, {code for clip in recordings for code in clip.names})
        mine = [clip for clip in recordings if clip.spoken in self.spoken and belongs(concept(clip.names["en"]))]
        mine.sort(key=lambda clip: draw("order", clip.path))
        count = self.pairs if part == "train" else self.held_out_pairs
        rows = [_row(clip, code) for clip, codes in _dealt(mine, self.written, count) for code in codes]
        yield from sorted(rows, key=lambda row: draw("rows", row["audio"], row["language"]))

    def _clips(self, folder: Path) -> Iterator[Clip]:
        """Yield the recordings, each content once, no more than are wanted of a sentence."""
        by_content: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips(folder):
            content = (folder / clip.path).read_bytes()
            if 0 < seconds(content) <= self.longest:
                by_content[hashlib.sha256(content).hexdigest()].append(clip)
        groups: dict[tuple[str, str], list[Clip]] = defaultdict(list)
        for same in by_content.values():
            meanings = {(concept(clip.names["en"]), clip.spoken) for clip in same}
            if len(meanings) == 1:
                groups[meanings.pop()].append(same[0])
        for group in groups.values():
            yield from sorted(group, key=lambda clip: draw("clip", clip.path))[: self.clips_per_sentence]


def _dealt(mine: Iterable[Clip], written: Sequence[str], count: int) -> Iterator[tuple[Clip, list[str]]]:
    """Yield each clip with the languages it is to be written in: those that its own language was least written in."""
    by_pair: Counter[tuple[str, str]] = Counter()
    by_language: Counter[str] = Counter()
    for clip in mine:
        known = [code for code in written if code in clip.names and language(code) != language(clip.spoken)]
        known.sort(key=lambda code, c=clip: (by_pair[c.spoken, code], by_language[code], draw("deal", c.path, code)))  # type: ignore[misc]
        chosen = known[:count]
        by_pair.update((clip.spoken, code) for code in chosen)
        by_language.update(chosen)
        yield clip, chosen


def _row(clip: Clip, code: str) -> Row:
    row: Row = {
        "audio": clip.path,
        "text": clip.names[code],
        "language": language(code),
        "spoken": clip.spoken,
        "source": concept(clip.names["en"]),
        "english": clip.names["en"],
    }
    return row | ({"said": clip.names[clip.spoken]} if clip.spoken in clip.names else {})
