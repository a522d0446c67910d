"""What the sparse model shall be: `MoESpec` for the whole model, `LayerSpec` for one layer once all is known."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layers:
    """Which decoder layers become MoE, as the user writes it: `all`, `every:N`, `first:N`, `last:N` or `3,7,11`.

    `every:N` takes the layers i (from 0) with `(i + 1) % N == 0`, as SPRI does (Shan et al. 2026).

    >>> Layers("every:4").indices(12)
    (3, 7, 11)
    """

    rule: str = "all"

    def __post_init__(self) -> None:
        self._parse()

    def _parse(self) -> tuple[str, tuple[int, ...]]:
        word, _, number = self.rule.partition(":")
        if self.rule == "all":
            return "all", ()
        if word in ("every", "first", "last") and number.isascii() and number.isdigit() and int(number) > 0:
            return word, (int(number),)
        parts = [part.strip() for part in self.rule.split(",")]
        if all(part.isascii() and part.isdigit() for part in parts):
            return "list", tuple(sorted({int(part) for part in parts}))
        raise ValueError(
            "layers: the rule must be all, every:N, first:N, last:N or a list such as 3,7,11 (N >= 1). "
            f"Got '{self.rule}'."
        )

    def indices(self, num_layers: int) -> tuple[int, ...]:
        """Return the chosen layer indices of a model of `num_layers` layers, ascending, at least one.

        Raises:
            ValueError: if a listed layer does not exist or nothing is chosen.
        """
        word, values = self._parse()
        if word == "list":
            if values[-1] >= num_layers:
                raise ValueError(
                    f"layers: every index must be below the model's {num_layers} layers. "
                    f"Got {values[-1]} in '{self.rule}'."
                )
            return values
        if word == "all":
            return tuple(range(num_layers))
        n = values[0]
        if n > num_layers:
            raise ValueError(f"layers: N must be at most the model's {num_layers} layers. Got '{self.rule}'.")
        if word == "every":
            return tuple(range(n - 1, num_layers, n))
        return tuple(range(n)) if word == "first" else tuple(range(num_layers - n, num_layers))


MAX_EXPERTS = 10_000
"""Per layer. Beyond it lies no known model, and the names of the tensors alone would fill the memory."""


@dataclass(frozen=True)
class MoESpec:
    """The sparse model a user asks for; validates itself.

    Args:
        num_experts: routed experts per MoE layer, 2 <= E <= 10,000.
        top_k: routed experts per token, 1 <= K <= E.
        expert_size: width of one routed expert in neurons; None lets the expert init choose (its natural size).
        shared_expert: an always-on expert beside the routed ones; None lets the expert init choose.
        normalize_gates: whether the K selected gates are renormalised to sum to 1.
        layers: which layers become MoE.
    """

    num_experts: int = 8
    top_k: int = 2
    expert_size: int | None = None
    shared_expert: bool | None = None
    normalize_gates: bool = True
    layers: Layers = field(default_factory=Layers)

    def __post_init__(self) -> None:
        if not 2 <= self.num_experts <= MAX_EXPERTS:
            raise ValueError(f"num_experts: a MoE must have 2 to {MAX_EXPERTS} experts. Got {self.num_experts}.")
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k: it must lie between 1 and num_experts = {self.num_experts}. Got {self.top_k}.")
        if self.expert_size is not None and self.expert_size < 1:
            raise ValueError(f"expert_size: an expert must have at least 1 neuron. Got {self.expert_size}.")


@dataclass(frozen=True)
class LayerSpec:
    """One MoE layer with every number known: what the init methods see.

    Args:
        num_experts: E. top_k: K. hidden: D. width: F, neurons of the dense FFN.
        expert_size: f, neurons of a routed expert.
        shared_expert: whether an always-on expert stands beside the routed ones. shared_size: its width in neurons;
            None: F.
        normalize_gates: whether the K gates sum to 1.
        gated: whether the dense FFN has a gate matrix.
    """

    num_experts: int
    top_k: int
    hidden: int
    width: int
    expert_size: int
    shared_expert: bool = False
    normalize_gates: bool = True
    gated: bool = True
    shared_size: int | None = None

    @property
    def shared_width(self) -> int:
        """Neurons of the shared expert, if there is one."""
        return self.width if self.shared_size is None else self.shared_size


@dataclass(frozen=True)
class ModelShape:
    """A whole sparse model with every number known: which layers are MoE, and what each of these looks like."""

    layer: LayerSpec
    moe_layers: tuple[int, ...]
    num_layers: int
