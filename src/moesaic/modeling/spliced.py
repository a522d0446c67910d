"""MoE layers inside stock transformers classes. Needs torch and transformers only: this file goes into model folders.

An FFN `last(act(first(x)))` stays where it is in the model's own code. Its first linears become taps, which remember x
and return next to nothing; its last linear becomes a `MoELayer`, which takes no notice of what reaches it and computes
the experts on the remembered x. So norms, residuals and dropout around the FFN stay, and it does not matter how the
code in between is written: as modules, as functions, in halves of one fused linear.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN

from .fast import routed_experts

PREFIX = "MoE"
"""What stands before the name of a stock class in the name of its spliced one."""
SECTION = "moesaic"
"""The key of config.json that says where the MoE layers are; also the prefix of the model type."""


class Tap(nn.Module):
    """Stands for a first linear: remembers the FFN's input for the MoE layer, and returns zeros [..., width].

    Args:
        width: 1, or 2 for a linear whose output is cut into halves.
        remembers: whether this is the tap that the MoE layer reads; a gated FFN has two.
    """

    def __init__(self, width: int, *, remembers: bool) -> None:
        super().__init__()
        self.width = width
        self.remembers = remembers
        self.x: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.remembers:
            self.x = x
        return x.new_zeros(()).expand(*x.shape[:-1], self.width)

    def take(self) -> torch.Tensor:
        """Return the FFN's input and forget it."""
        x, self.x = self.x, None
        if x is None:
            raise RuntimeError("MoELayer: the FFN's first linear must run before its last. It did not.")
        return x


class Experts(nn.Module):
    """The routed experts, stacked, with the dense FFN's biases if it has any.

    `gate_up_proj` [E, 2f, D] (gate rows first) or `up_proj` [E, f, D]; `down_proj` [E, D, f].
    """

    def __init__(self, site: Mapping[str, Any]) -> None:
        super().__init__()
        experts, hidden, size = site["num_experts"], site["hidden"], site["expert_size"]
        self.gated = site["layout"] != "plain"
        self.act: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[site["act"]]
        self.up_name = "gate_up_proj" if self.gated else "up_proj"
        rows = 2 * size if self.gated else size
        self.register_parameter(self.up_name, nn.Parameter(torch.empty(experts, rows, hidden)))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, size))
        up_bias = nn.Parameter(torch.empty(experts, rows)) if site["first_bias"] else None
        self.register_parameter(f"{self.up_name}_bias", up_bias)
        self.down_proj_bias = nn.Parameter(torch.empty(experts, hidden)) if site["last_bias"] else None

    def forward(self, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
        return routed_experts(
            x_TD,
            ids_TK,
            weights_TK,
            getattr(self, self.up_name),
            self.down_proj,
            self.act,
            gated=self.gated,
            up_bias=getattr(self, f"{self.up_name}_bias"),
            down_bias=self.down_proj_bias,
        )


class SharedExpert(nn.Module):
    """An always-on FFN beside the routed experts."""

    def __init__(self, site: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, width, bias = site["hidden"], site["shared_size"], site["first_bias"]
        self.gate_proj = nn.Linear(hidden, width, bias=bias) if site["layout"] != "plain" else None
        self.up_proj = nn.Linear(hidden, width, bias=bias)
        self.down_proj = nn.Linear(width, hidden, bias=site["last_bias"])
        self.act: Callable[[torch.Tensor], torch.Tensor] = ACT2FN[site["act"]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.up_proj(x)
        inner = self.act(inner) if self.gate_proj is None else self.act(self.gate_proj(x)) * inner
        down: torch.Tensor = self.down_proj(inner)
        return down


class MoELayer(nn.Module):
    """`sum_i gate_i(x) expert_i(x) (+ shared(x))` over the top-k of `softmax(router x)`, in the place of an FFN.

    Gates are float32 (float64 for float64 input) until the weighted sum. Scales of shared and routed parts are folded
    into the last linears by whoever writes the weights.

    Args:
        site: one entry of the config's `moesaic` section, as `moesaic.modeling.sections.entry` makes it. The layer
            keeps it, and writes into it where what it computes changes.
        tap: where the FFN's input is remembered; None where the layer is used by itself and called with x.
    """

    choice_bias: torch.Tensor | None

    def __init__(self, site: dict[str, Any], tap: Tap | None = None) -> None:
        super().__init__()
        self.site = site
        self.top_k: int = site["top_k"]
        self.normalize_gates: bool = site["normalize_gates"]
        self.router = nn.Linear(site["hidden"], site["num_experts"], bias=False)
        self.experts = Experts(site)
        self.shared_expert = SharedExpert(site) if site["shared_size"] else None
        self.register_buffer("choice_bias", None)
        if site.get("choice_bias"):
            self.add_choice_bias()
        self._tap = (tap,)  # in a tuple, so that it is no submodule of this one too
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights as most transformers do: normal with standard deviation 0.02, biases zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=0.02)

    def add_choice_bias(self) -> None:
        """Have a bias [E] added to the scores for the choice of experts alone, and say so in the config."""
        if self.choice_bias is None:
            weight = self.router.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self.choice_bias = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device)
            self.site["choice_bias"] = True

    @property
    def weight(self) -> torch.Tensor:
        """The experts' last linears; some models read the dtype of the linear that stood here."""
        experts: Any = self.experts
        while not isinstance(experts, Experts):  # adapters of PEFT stand around them
            experts = experts.base_layer
        down: torch.Tensor = experts.down_proj
        return down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tap = self._tap[0]
        return self.compute(x if tap is None else tap.take())

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output [..., D] for the FFN's input x [..., D], in the dtype of the last linear.

        That is float32 in some models (T5's in float16) whatever the dtype of the rest, lest outputs overflow.
        """
        x_TD = _in_dtype_of(self.router.weight, x.reshape(-1, x.shape[-1]))
        ids_TK, weights_TK = self.route(self.router(x_TD))
        x_TD = _in_dtype_of(self.weight, x.reshape(-1, x.shape[-1]))
        y_TD: torch.Tensor = self.experts(x_TD, ids_TK, weights_TK)
        if self.shared_expert is not None:
            y_TD = y_TD + self.shared_expert(x_TD)
        return y_TD.reshape(x.shape)

    def route(self, logits_TE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the chosen experts and their gates, [T, K] each, best first."""
        wide = torch.promote_types(logits_TE.dtype, torch.float32)
        probs_TE = logits_TE.softmax(-1, dtype=wide)
        weights_TK, ids_TK = probs_TE.topk(self.top_k, -1)
        if self.choice_bias is not None:
            ids_TK = (probs_TE + self.choice_bias).topk(self.top_k, -1).indices
            weights_TK = probs_TE.gather(-1, ids_TK)
        if self.normalize_gates:
            weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
        return ids_TK, weights_TK


def _in_dtype_of(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return what a weight multiplies in its dtype; autocast and quantised linears see to theirs themselves."""
    if x.dtype == weight.dtype or weight.itemsize < 2 or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)


def splice(model: nn.Module, section: Mapping[str, Any]) -> nn.Module:
    """Put a MoE layer in the place of every FFN that the section names; the model is changed, and returned.

    Args:
        section: `{"sites": [...]}`; each site names its `first` and `last` linears by module path, its `layout` and
            `act`, and the numbers of its MoE layer. Paths may lack or have the prefix of the base model. `stored` are
            the paths under which the weights stand on disk: those of an older transformers, where they differ.
            `choice_bias`, where true, says that a bias is added to the scores for the choice of experts.
    """
    for site in section["sites"]:
        first, last = (site["first"], site["last"]) if _own(model, site["last"]) else site["stored"]
        halves = 1 if site["layout"] in ("plain", "gated") else 2
        taps = [Tap(halves, remembers=number == 0) for number in range(len(first))]
        for path, module in zip((*first, last), (*taps, MoELayer(site, taps[0])), strict=True):
            _put(model, path, module)
    return model


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    own = _own(model, path)
    if not own:
        raise ValueError(
            f"{type(model).__name__}: the FFN must be where the config says, at {path!r}. It is not. Install a newer "
            "transformers, or the one that the model was made with."
        )
    parent, _, name = own.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _own(model: nn.Module, path: str) -> str:
    """Return the path as this model has it, or an empty one.

    The base model by itself lacks the prefix that its other classes have, and transformers 4 renames what stands on
    disk by a map of the class.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    tried = [path, path.removeprefix(prefix), prefix + path]
    for pattern, name in (getattr(model, "_checkpoint_conversion_mapping", None) or {}).items():
        tried += [re.sub(pattern, name, way) for way in tried]
    modules = dict(model.named_modules())
    return next((way for way in tried if way in modules), "")


@cache
def spliced_config(name: str) -> type[Any]:
    """Return the config class of spliced models for a stock config class, by the latter's name."""
    base = getattr(transformers, name)
    return type(
        PREFIX + name, (base,), {"model_type": f"{SECTION}_{base.model_type}", "__module__": __name__, "__doc__": None}
    )


@cache
def spliced_class(name: str) -> type[Any]:
    """Return the class of spliced models for a stock class, by the latter's name."""
    base = getattr(transformers, name)

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        splice(self, getattr(config, SECTION))
        # Here, not in the class: transformers 4 refuses, in base.__init__, what is no module or parameter then.
        self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), "choice_bias"}

    _keep_names_on_disk(base)
    body = {"__init__": build, "config_class": spliced_config(base.config_class.__name__), "__module__": __name__}
    return type(PREFIX + name, (base,), {**body, "__doc__": f"{name} with MoE layers in the place of FFNs."})


def _keep_names_on_disk(base: type[Any]) -> None:
    """Let transformers 5 rename the tensors of a spliced class as it does those of the stock one; 4 renames nothing."""
    try:
        from transformers import conversion_mapping as known  # noqa: PLC0415  # not in transformers 4
    except ImportError:
        return
    model_type = base.config_class.model_type
    for stock, made in ((base.__name__, PREFIX + base.__name__), (model_type, f"{SECTION}_{model_type}")):
        renaming = known.get_checkpoint_conversion_mapping(stock)
        if renaming is not None:
            known.register_checkpoint_conversion_mapping(made, renaming, overwrite=True)


def __getattr__(name: str) -> Any:
    """Make `MoEWhisperModel`, `MoEWhisperConfig` and the like when transformers asks for them by name."""
    stock = name.removeprefix(PREFIX)
    if stock == name or not isinstance(getattr(transformers, stock, None), type):
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return spliced_config(stock) if stock.endswith("Config") else spliced_class(stock)
