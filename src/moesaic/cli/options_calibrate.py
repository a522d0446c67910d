"""The options of `moesaic calibrate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro

from moesaic.spec import Layers, MoESpec


@dataclass(frozen=True)
class CalibrateOptions:
    """Run a dense model over data, and write down the statistics that the chosen methods ask for.

    Data are a file or a folder (with sub-folders, which are labels) of texts (.txt, .md, .json, .jsonl), images or
    recordings, or the prompts of a mergekit-moe YAML. Runs on one process, or on several under torchrun.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")] = tyro.MISSING
    """A model folder, a hub id, a GGUF file, or a name of `moesaic sources`."""
    data: Path = tyro.MISSING
    """A file or folder."""
    out: Path = tyro.MISSING
    """The file of statistics to write (.safetensors)."""
    num_experts: int = 8
    """Routed experts in each MoE layer that is to be made."""
    top_k: int = 2
    """Routed experts for each token."""
    expert_size: Optional[int] = None
    """Width of one expert in neurons; the expert init's natural size if left out."""
    layers: str = "all"
    """Which layers are watched: all, every:N, first:N, last:N, or a list such as 3,7,11."""
    tower: Optional[str] = None
    """Only FFNs whose path has this word (vision, decoder, ...); if left out, all that see the data."""
    max_tokens: Optional[int] = None
    """Stop after the batch that reaches them; all data if left out."""
    batch_tokens: int = 4096
    """Tokens that run together, padding included."""
    window: int = 512
    """Tokens of a text that run together; longer texts are cut."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and matrix products."""
    seed: int = 0
    """Of the order of the data and of what statistics draw."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue an interrupted calibration; it ends in the same statistics."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the file, and drop an interrupted calibration."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of tables."""

    def spec(self) -> MoESpec:
        """Return what the sparse model shall be."""
        return MoESpec(self.num_experts, self.top_k, self.expert_size, layers=Layers(self.layers))
