"""The result of a calibration: sums of statistics, one safetensors file with its record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.calibration.record import Counted, Record, statistic_of
from moesaic.errors import CalibrationError, brief
from moesaic.lazy import torch
from moesaic.saving import write_tensors
from moesaic.sites import Site
from moesaic.stats import Seen, Statistic

KEY = "moesaic"
"""Where the record stands in the file's metadata."""


@dataclass(frozen=True)
class Calibration:
    """What the FFNs of a model saw.

    Args:
        record: what was counted where. tensors: `{number of the site}/{index of the statistic}/sum|fixed/{name}`; of
            a file they are read one at a time when they are asked for.
        name: what to call it in messages.
    """

    record: Record
    tensors: Mapping[str, torch.Tensor]
    name: str = "statistics"

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Open a file of statistics; only its head is read.

        Raises:
            CalibrationError: where it is no such file, or damaged.
        """
        tensors = Opened(file)
        try:
            record = Record.parse(tensors.metadata[KEY])
        except KeyError:
            raise CalibrationError(
                f"{file}: a file of statistics must have the record '{KEY}' in its metadata. Got none. Pass a file "
                "that `moesaic calibrate` wrote."
            ) from None
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{file}: its record must be whole. Got {error}. Calibrate again.") from None
        found = cls(record, tensors, file.name)
        found.check_names()
        return found

    def save(self, file: Path) -> None:
        """Write one safetensors file; it appears whole or not at all."""
        write(file, dict(self.tensors), {KEY: json.dumps(self.record.to_json())})

    @property
    def sites(self) -> tuple[Site, ...]:
        """The FFNs that were watched."""
        return tuple(one.site for one in self.record.counted)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return (tower, FFNs, tokens that each saw, statistics) for a table."""
        towers: dict[tuple[str, int, tuple[str, ...]], int] = {}
        for one in self.record.counted:
            key = (one.site.tower, one.tokens, tuple(key.partition(" ")[0] for key in one.statistics))
            towers[key] = towers.get(key, 0) + 1
        return [(tower, str(n), f"{tokens:,}", ", ".join(names)) for (tower, tokens, names), n in towers.items()]

    def seen(self, site: Site | str | int) -> Seen:
        """Return the results of one FFN's statistics, finished.

        Args:
            site: the FFN, the path of its last linear, or its number among those of the model.

        Raises:
            CalibrationError: where it was not watched, or the data do not suffice.
        """
        one = self._counted(site)
        results: dict[Statistic, Mapping[str, torch.Tensor]] = {}
        for index, key in enumerate(one.statistics):
            statistic = statistic_of(key)
            sums, fixed = (self._part(f"{one.number}/{index}/{kind}/") for kind in ("sum", "fixed"))
            self._check_sums(one, statistic, sums)
            results[statistic] = statistic.finish(sums, fixed)
        return Seen(results, self.record.labels)

    def check(self, fingerprint: str, model: str) -> None:
        """Refuse statistics of another model.

        Raises:
            CalibrationError: naming both.
        """
        if fingerprint != self.record.origin.fingerprint:
            raise CalibrationError(
                f"{self.name}: the statistics must be of the model that is upcycled, {model} ({fingerprint[:12]}). Got "
                f"those of {self.record.origin.model} ({self.record.origin.fingerprint[:12]}). Calibrate {model}."
            )

    def _counted(self, site: Site | str | int) -> Counted:
        for one in self.record.counted:
            if site in (one.number, one.site.last) or site == one.site:
                return one
        what = site.last if isinstance(site, Site) else site
        raise CalibrationError(
            f"{self.name}: it must hold statistics of the FFN {what}. Got those of "
            f"{brief([one.site.last for one in self.record.counted])}. Calibrate with these layers."
        )

    def _part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): self.tensors[name] for name in self.tensors if name.startswith(prefix)}

    def _check_sums(self, one: Counted, statistic: Statistic, sums: Mapping[str, torch.Tensor]) -> None:
        with torch.device("meta"):
            wanted = statistic.zeros(one.site.hidden, one.site.width, len(self.record.labels))
        forms = {name: (total.dtype, total.shape) for name, total in wanted.items()}
        if forms != {name: (total.dtype, total.shape) for name, total in sums.items()}:
            raise CalibrationError(
                f"{self.name}: {one.site.last} must have the sums of {statistic.name()}. Got "
                f"{brief({name: tuple(total.shape) for name, total in sums.items()})}. Calibrate again."
            )
        if bad := [name for name, total in sums.items() if total.is_floating_point() and not total.isfinite().all()]:
            raise CalibrationError(
                f"{self.name}: {one.site.last}: the sums must be finite. Got NaN or infinity in {bad[0]} of "
                f"{statistic.name()}. Calibrate in float32, or look for a broken weight."
            )

    def check_names(self) -> None:
        """Refuse tensors that the record does not speak of."""
        owners = {f"{one.number}/{index}" for one in self.record.counted for index in range(len(one.statistics))}
        if odd := [name for name in self.tensors if "/".join(name.split("/")[:2]) not in owners]:
            raise CalibrationError(f"{self.name}: every tensor must be of a site in the record. Got {brief(odd)}.")


class Opened(Mapping[str, "torch.Tensor"]):
    """The tensors of a safetensors file, each read when it is asked for; nothing in the file is ever run.

    Raises:
        CalibrationError: where the file is no whole safetensors file.
    """

    def __init__(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # brings torch

        try:
            self._file: Any = safe_open(file, "pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise CalibrationError(
                f"{file}: the file must be a whole safetensors file. Got: {error}. Calibrate again."
            ) from None

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Texts in the head of the file."""
        return dict(self._file.metadata() or {})

    @cached_property
    def _names(self) -> list[str]:
        return list(self._file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its place and move it there: a reader meets the old one, the new one or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".new")
    write_tensors(partial, tensors, metadata)
    partial.replace(file)
