"""What a user may choose about a conversion, and whether the chosen methods go together."""

from __future__ import annotations

from dataclasses import dataclass, field

from moesaic.architectures.sparse import Runtime
from moesaic.errors import PlanError, listing
from moesaic.experts.base import ExpertInit
from moesaic.experts.spri import Spri
from moesaic.routers.base import RouterInit
from moesaic.routers.group_tied import GroupTied
from moesaic.routers.normal import Normal
from moesaic.spec import LayerSpec, MoESpec

SPLICE = "splice"
"""The target that stands for MoE layers inside the model's own class."""
EXPERT_UNIT = 8  # neurons; grouped matmul kernels need rows of a multiple of 16 bytes in bf16


@dataclass(frozen=True)
class Options:
    """What a user may choose about a conversion, apart from where it reads and writes.

    Args:
        spec: the sparse model. experts: expert init. router: router init, None: the one that suits the expert init.
        target: model type of the sparse class; `splice`: MoE layers inside the model's own class; None: the preferred
            class that expresses the model, splicing where there is none for its kind.
        tower: a word of the paths of the FFNs that become MoE (`vision`, `decoder`); needs splicing. None: all.
        runtime: what shall serve the result; a target that would be wrong there is refused.
        dtype: F32, F16 or BF16 for all float tensors, None: as they are.
        untie: write the output head even where it is tied to the embedding. seed: of all randomness.
    """

    spec: MoESpec = field(default_factory=MoESpec)
    experts: ExpertInit = field(default_factory=Spri)
    router: RouterInit | None = None
    target: str | None = None
    runtime: Runtime = "transformers"
    dtype: str | None = None
    untie: bool = False
    seed: int = 0
    tower: str | None = None


def refuse_idle(options: Options, *, splices: bool) -> None:
    """Refuse options that the way to a MoE leaves without effect; whether methods go together is `check_methods`.

    Raises:
        PlanError: naming the option.
    """
    if options.untie and splices:
        raise PlanError(
            "--untie: the target must be a stock sparse class, whose output head is written. Got MoE layers inside "
            "the model's own class, whose head stays as it is. Leave --untie out."
        )
    if options.tower is not None and not splices:
        raise PlanError(
            f"--tower {options.tower}: the target must be the model's own class, in which towers are chosen. Got "
            f"--target {options.target}, whose language model alone becomes MoE. Leave --tower or --target out."
        )


def refuse_idle_tower(options: Options, towers: set[str], *, stock: bool) -> None:
    """Refuse a tower that chooses nothing: the only one, in a model that is spliced anyway.

    Args:
        towers: all that were found. stock: whether a stock sparse class was made for the model's kind.

    Raises:
        PlanError: naming it.
    """
    if options.tower is not None and len(towers) == 1 and (options.target == SPLICE or not stock):
        raise PlanError(
            f"--tower {options.tower}: the model must have several towers to choose from. Got one, {min(towers)}. "
            "Leave --tower out; --layers chooses among its FFNs."
        )


def default_router(experts: ExpertInit, layer: LayerSpec) -> RouterInit:
    rows = experts.tied_rows(layer)
    return Normal() if rows == 1 else GroupTied(group=rows)


def check_methods(options: Options, router: RouterInit, layer: LayerSpec) -> None:
    experts = options.experts
    problems = [*experts.problems(layer), *router.problems(layer)]
    if not problems and experts.tied_rows(layer) not in (1, router.tied_rows()):
        problems.append(
            f"{experts.name()}: the router must share one row among {experts.tied_rows(layer)} neighbouring experts. "
            f"Got {router.name()}, which shares it among {router.tied_rows()}. Use --router group_tied "
            f"--router.group {experts.tied_rows(layer)}, or leave --router out."
        )
    if not problems and experts.identical(layer) and not router.breaks_ties():
        problems.append(
            f"{router.name()}: the router must tell identical experts apart. {experts.name()} makes all experts equal, "
            "so equal logits would never part them in training. Use --router normal."
        )
    if not problems and layer.expert_size % EXPERT_UNIT:
        problems.append(
            f"expert_size: it must be a multiple of {EXPERT_UNIT} neurons, or grouped matmul refuses it at run time. "
            f"Got {layer.expert_size}. Choose another --num-experts or --expert-size."
        )
    if problems:
        raise PlanError("This conversion can't be made:\n" + listing(problems))


def layer_spec(
    options: Options, hidden: int, width: int, *, gated: bool = True, shared_required: bool = False
) -> LayerSpec:
    """Return the numbers of one MoE layer, for a dense FFN of D = `hidden` and F = `width`.

    Args:
        shared_required: whether the sparse class always has a shared expert.
    """
    spec, experts = options.spec, options.experts
    shared = spec.shared_expert
    if shared is None:
        shared = experts.needs_shared() or shared_required
    return LayerSpec(
        num_experts=spec.num_experts,
        top_k=spec.top_k,
        hidden=hidden,
        width=width,
        expert_size=spec.expert_size or experts.expert_size(width, spec.num_experts),
        shared_expert=shared,
        normalize_gates=spec.normalize_gates,
        gated=gated,
        shared_size=experts.shared_size(width, spec.num_experts) if shared else None,
    )
