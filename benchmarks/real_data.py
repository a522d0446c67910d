"""Real texts, pictures and recordings, each in two parts that share no source: one to calibrate on, one to certify on.

Texts are Python's manual and docstrings, the licences of Debian and moesaic's passages. Pictures and recordings are the
clip art of Debian's `tuxpaint-stamps-default` (GPL-2), which moesaic's corpora fetch. What shares a
source (a module, a family of licences, an English name) stays together. All are many small items, so that any beginning
of their random order is a fair sample.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import soundfile
from scipy.signal import resample_poly

from moesaic.corpora.base import draw
from moesaic.corpora.pictures import drawn
from moesaic.corpora.stamps import STAMPS, names
from moesaic.texts import builtin

PARTS = ("calibration", "held-out")
LICENCES = Path("/usr/share/common-licenses")
TEXT = 2000  # characters of a file, at most but for its last paragraph
SIDE = 256  # pixels of a picture's shorter side; the models take 224
RATE = 16_000  # hertz
CLIP, PAUSE = 28.0, 0.3  # seconds of a clip of joined recordings, and between two of them
LANGUAGES = ("fr", "es", "ru", "ro", "ca", "bg")


def part(source: str) -> str:
    """Return the part that everything with this source belongs to; one in five is held out."""
    return PARTS[hashlib.sha256(source.encode()).digest()[0] < 256 // 5]


def stamps() -> Path:
    """Return the folder of the stamps, fetched on first use."""
    return STAMPS.unpacked(print)


def write_texts(out: Path) -> None:
    """Write texts, a folder per domain."""
    for domain, name, text in documents():
        for number, piece in enumerate(pieces(text)):
            file = out / part(name) / domain / f"{name}-{number:03}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(piece)


def documents() -> Iterator[tuple[str, str, str]]:
    """Yield (domain, source, text)."""
    for name, text in topics.items():
        yield "manual", name, text
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield "docstrings", path.stem, "\n\n".join(docstrings(path))
    licences = [path for path in sorted(LICENCES.glob("*")) if not path.is_symlink()]
    families = ["GNU" if path.name[0] in "GL" else path.name for path in licences]
    for family in dict.fromkeys(families):
        texts = [path.read_text() for path, own in zip(licences, families, strict=True) if own == family]
        yield "licences", family, "\n\n".join(texts)
    for name, text in builtin():
        yield "passages", name, text


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (found := ast.get_docstring(node)):
            yield found


def pieces(text: str) -> Iterator[str]:
    """Yield whole paragraphs together, about TEXT characters at a time."""
    held: list[str] = []
    for paragraph in text.split("\n\n"):
        held.append(paragraph)
        if sum(map(len, held)) >= TEXT:
            yield "\n\n".join(held)
            held = []
    if any(paragraph.strip() for paragraph in held):
        yield "\n\n".join(held)


def write_pictures(source: Path, out: Path) -> None:
    """Write all pictures on white, a folder per category."""
    for path in sorted(source.rglob("*.png")):
        if path.stem.endswith("_mirror"):
            continue
        place = path.relative_to(source)
        file = out / part(names(path.with_suffix(".txt")).get("en", path.stem)) / place.parts[0] / "-".join(place.parts)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn(path, SIDE).save(file, compress_level=1)


def write_recordings(source: Path, out: Path, clips: Mapping[str, int]) -> dict[str, list[dict[str, str]]]:
    """Write clips of recordings one after the other; return rows with their transcripts, languages taking turns.

    The model hears 30 s whatever there is, and a name takes 1 to 2 s to say: alone it would mean 95 % of silence.

    Args:
        clips: how many of each part, for all languages.
    """
    rows: dict[str, list[dict[str, str]]] = {}
    for name, count in clips.items():
        (out / name).mkdir(parents=True)
        made = {language: joined(source, language, name) for language in LANGUAGES}
        for number in range(count):
            language = LANGUAGES[number % len(LANGUAGES)]
            wave, text = next(made[language])
            audio = out / name / f"{language}-{number:03}.flac"
            soundfile.write(audio, wave, RATE)
            rows.setdefault(name, []).append({"audio": str(audio), "text": text, "label": language})
    return rows


def joined(source: Path, language: str, name: str) -> Iterator[tuple[np.ndarray, str]]:
    """Yield clips [T] of one language and part of the data, with what is said in them."""
    waves: list[np.ndarray] = []
    said: list[str] = []
    for path in sorted(source.rglob(f"*_desc_{language}.ogg"), key=lambda path: draw(path.name)):
        known = names(path.with_name(path.name.replace(f"_desc_{language}.ogg", ".txt")))
        if part(known.get("en", path.name)) != name or language not in known:
            continue
        wave, rate = soundfile.read(path, always_2d=True)
        wave = resample_poly(wave.mean(1), RATE, rate)
        if sum(map(len, waves)) + len(wave) > CLIP * RATE:
            yield np.concatenate(waves), " ".join(said)
            waves, said = [], []
        waves += [wave, np.zeros(int(PAUSE * RATE))]
        said.append(known[language])
