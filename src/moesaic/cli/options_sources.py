"""The options of `moesaic sources`: none to list, a name and a folder to write a corpus, with that corpus's own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import tyro

from moesaic.cli.parsing import parsed

if TYPE_CHECKING:
    from moesaic.corpora import Corpus


@dataclass(frozen=True)
class SourcesOptions:
    """List the small real models and the corpora that come inside packages.

    `moesaic sources CORPUS OUT` writes a corpus as train.jsonl, validation.jsonl and test.jsonl, with its media;
    `moesaic sources CORPUS --help` lists its options. Models need no writing: commands take them by name.
    """


@dataclass(frozen=True)
class CorpusOptions:
    """Where to write a corpus, and which part of it is held out."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")] = tyro.MISSING
    """The folder to make."""
    fold: int = 0
    """Which fifth of the sources is the test part, 0 to 4."""


def parse_corpus(corpus: type[Corpus], args: list[str]) -> tuple[Corpus, Path, int]:
    """Return the corpus that the arguments after its name ask for, the folder to make, and the fold."""
    hints = get_type_hints(corpus)
    own = [
        (item.name, hints[item.name], dataclasses.field(default=item.default)) for item in dataclasses.fields(corpus)
    ]
    full = dataclasses.make_dataclass("Corpus", own, bases=(CorpusOptions,), frozen=True, kw_only=True)
    full.__doc__ = corpus.__doc__
    found: Any = parsed(full, f"sources {corpus.name()}", args)
    return corpus(**{name: getattr(found, name) for name, *_ in own}), found.out, found.fold
