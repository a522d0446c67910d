"""A conversion that puts MoE layers inside the model's own class: what is written, and where its bytes come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.architectures.sparse import ExpertTensor
from moesaic.convert.blocks import Block
from moesaic.convert.holdings import said_dtype
from moesaic.convert.options import Options
from moesaic.modeling.names import MERGED
from moesaic.modeling.sections import PREFIX, SECTION, auto_map, code_files, entry, section
from moesaic.plan import FLOATS, Copy, Fold, Output, Piece, Plan, Router, Rows, TensorInfo
from moesaic.routers.base import RouterInit
from moesaic.shapes import Matrix
from moesaic.sites import FUSED, Site
from moesaic.spec import LayerSpec
from moesaic.stats import Seen


@dataclass(frozen=True)
class Spliced:
    """A checked conversion that puts MoE layers in the place of some FFNs of the model's own class.

    Args:
        options: as given. router: the one used. dense_config: config.json of the source.
        sites: every FFN found. chosen: number of each that becomes MoE -> its numbers; numbers count `sites` from 0.
        names: tensor on disk -> what it is in the class. infos: dtype and shape of every tensor on disk.
        seen: what calibration saw, by number.
    """

    options: Options
    router: RouterInit
    dense_config: Mapping[str, Any]
    sites: tuple[Site, ...]
    chosen: Mapping[int, LayerSpec]
    names: Mapping[str, str | None]
    infos: Mapping[str, TensorInfo]
    seen: Mapping[int, Seen] = field(default_factory=dict)

    @property
    def layers(self) -> Mapping[int, LayerSpec]:
        """Number of a site that becomes MoE -> its numbers."""
        return self.chosen

    @property
    def factors(self) -> tuple[float, float]:
        """Factors on the last linear of the shared expert and of the routed experts."""
        return self.options.experts.shares(next(iter(self.chosen.values())))

    @cached_property
    def new_dtype(self) -> str:
        """The dtype of routers: that of the first FFN that becomes MoE."""
        first = next(iter(self.chosen))
        return self.options.dtype or self.infos[self.ffns[first]["up"].tensor].dtype

    @property
    def source_type(self) -> str:
        """Model type of the dense model."""
        return str(self.dense_config["model_type"])

    @property
    def target_type(self) -> str:
        """Model type of the result."""
        return f"{SECTION}_{self.source_type}"

    @property
    def class_name(self) -> str:
        """The stock class."""
        return str(self.dense_config["architectures"][0])

    @property
    def extent(self) -> str:
        """Which FFNs are MoE, in words."""
        towers: dict[str, list[int]] = {}
        for number, site in enumerate(self.sites):
            towers.setdefault(site.tower, []).append(number)
        parts = [(tower, [n for n in numbers if n in self.chosen], len(numbers)) for tower, numbers in towers.items()]
        return "; ".join(f"{len(moe)} of {total} FFNs of `{tower}`" for tower, moe, total in parts if moe)

    @cached_property
    def loading(self) -> tuple[str, str]:
        """The class that loads the result, and the one that loads what reads its inputs."""
        known = self.config["auto_map"]
        if known.get("AutoModel") == f"spliced.{PREFIX}{self.class_name}":
            return "AutoModel", "AutoProcessor"
        vague = ("AutoConfig", "AutoModel", "AutoModelForPreTraining")
        return next((name for name in known if name not in vague), "AutoModel"), "AutoProcessor"

    @property
    def code(self) -> tuple[Path, ...]:
        """The files with which `from_pretrained(..., trust_remote_code=True)` splices."""
        return code_files()

    @cached_property
    def on_disk(self) -> dict[str, str]:
        """The class's own name -> the name on disk."""
        return {key: name for name, key in self.names.items() if key is not None and key != MERGED}

    @cached_property
    def ffns(self) -> dict[int, dict[Matrix, Rows]]:
        """Where the dense FFN of each site that becomes MoE stands on disk."""
        return {number: self._rows(self.sites[number]) for number in self.chosen}

    def _rows(self, site: Site) -> dict[Matrix, Rows]:
        """Return where the matrices of an FFN stand; both halves of a fused linear in the same tensor."""
        down = self.on_disk[f"{site.last}.weight"]
        found: dict[Matrix, Rows] = {"down": Rows(down, 0, site.hidden, transposed=site.transposed)}
        if site.last_bias:
            found["down_bias"] = Rows(self.on_disk[f"{site.last}.bias"], 0, site.hidden)
        for matrix, path, (start, stop, step) in _first(site):
            weight = self.on_disk[f"{path}.weight"]
            found[matrix] = Rows(weight, start, stop, step, site.transposed)
            if site.first_bias:
                bias: Matrix = "gate_bias" if matrix == "gate" else "up_bias"
                found[bias] = Rows(self.on_disk[f"{path}.bias"], start, stop, step)
        return found

    @cached_property
    def plan(self) -> Plan:
        """Every output tensor and where its bytes come from."""
        inside = {rows.tensor: number for number, ffn in self.ffns.items() for rows in ffn.values()}
        dropped = {name: "the class never reads it" for name, key in self.names.items() if key is None}
        outputs: list[Output] = []
        written: set[int] = set()
        for name in self.infos:  # in the order of the files; a MoE layer where its FFN was
            number = inside.get(name)
            if number is None and name not in dropped:
                outputs.append(self._kept(name))
            elif number is not None and number not in written:
                outputs += self._moe(number)
                written.add(number)
        return Plan(self.infos, self.ffns, tuple(outputs), dropped)

    def _kept(self, name: str) -> Output:
        info = self.infos[name]
        rows = Rows(name, 0, info.shape[0] if info.shape else 1)
        dtype = self.options.dtype if self.options.dtype and info.dtype in FLOATS else info.dtype
        new = TensorInfo(dtype, info.shape)
        origin = Copy(rows) if dtype == info.dtype else Fold(rows)
        return Output(name, new, (Piece(origin, new.nbytes),))

    def _moe(self, number: int) -> list[Output]:
        """Return router, routed experts and shared expert of one site, under the name of its last linear on disk."""
        site, moe, prefix = self.sites[number], self.chosen[number], self.stored(self.sites[number])[-1]
        dtype, experts = self.options.dtype, self.options.experts
        block = Block(number, moe, self.ffns[number], self.infos, dtype, self.factors, experts)
        router = TensorInfo(self.new_dtype, (moe.num_experts, moe.hidden))
        made = [Output(f"{prefix}.router.weight", router, (Piece(Router(number), router.nbytes),))]
        for tensor in stacked(prefix, site):
            every = tuple(piece for found in block.routed(tensor) for piece in found)
            made.append(Output(tensor.name, block.stack(tensor), every))
        shared = beside(prefix, site) if moe.shared_expert else []
        return made + [Output(t.name, block.info(t, moe.shared_width), block.shared(t)) for t in shared]

    def stored(self, site: Site) -> list[str]:
        """Return the paths of a site's linears on disk, the last one last."""
        return [self.on_disk[f"{path}.weight"].removesuffix(".weight") for path in (*site.first, site.last)]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config.json to write."""
        dense = {key: value for key, value in self.dense_config.items() if key != "torch_dtype"}
        base = {"model_type": self.source_type, "class_name": self.class_name}
        made = (entry(self.sites[n], moe, self.stored(self.sites[n])) for n, moe in self.chosen.items())
        return {
            **dense,
            "architectures": [PREFIX + self.class_name],
            "model_type": self.target_type,
            "auto_map": auto_map(self.class_name),
            "dtype": FLOATS[self.options.dtype or said_dtype(self.dense_config) or self.new_dtype],
            SECTION: section(base, made),
        }


def _first(site: Site) -> list[tuple[Matrix, str, tuple[int, int, int]]]:
    """Return (matrix, path of its linear, its rows there as start, stop, step)."""
    width = site.width
    if site.layout not in FUSED:
        names: tuple[Matrix, ...] = ("gate", "up") if site.gated else ("up",)
        return [(name, path, (0, width, 1)) for name, path in zip(names, site.first, strict=True)]
    halves = [(0, 2 * width, 2), (1, 2 * width, 2)] if "interleaved" in site.layout else None
    gate, up = halves or [(0, width, 1), (width, 2 * width, 1)]
    if site.layout.endswith("_reversed"):
        gate, up = up, gate
    return [("gate", site.first[0], gate), ("up", site.first[0], up)]


def stacked(prefix: str, site: Site) -> list[ExpertTensor]:
    """Return the tensors of the routed experts, as `modeling.spliced.Experts` names them."""
    first: tuple[Matrix, ...] = ("gate", "up") if site.gated else ("up",)
    name = f"{prefix}.experts.{'gate_up_proj' if site.gated else 'up_proj'}"
    found = [ExpertTensor(name, first), ExpertTensor(f"{prefix}.experts.down_proj", ("down",))]
    if site.first_bias:
        biases: tuple[Matrix, ...] = ("gate_bias", "up_bias") if site.gated else ("up_bias",)
        found.append(ExpertTensor(f"{name}_bias", biases))
    if site.last_bias:
        found.append(ExpertTensor(f"{prefix}.experts.down_proj_bias", ("down_bias",)))
    return found


def beside(prefix: str, site: Site) -> list[ExpertTensor]:
    """Return the tensors of the shared expert, as `modeling.spliced.SharedExpert` names them."""
    matrices: list[tuple[str, Matrix]] = [("gate_proj.weight", "gate")] if site.gated else []
    matrices += [("up_proj.weight", "up"), ("down_proj.weight", "down")]
    if site.first_bias:
        matrices += [("gate_proj.bias", "gate_bias")] if site.gated else []
        matrices += [("up_proj.bias", "up_bias")]
    if site.last_bias:
        matrices += [("down_proj.bias", "down_bias")]
    return [ExpertTensor(f"{prefix}.shared_expert.{name}", (matrix,)) for name, matrix in matrices]
