"""What a router loss does to routing and to the task: none, load balancing, z, DPSL alike for all and by language."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moesaic.experts.norm_matched_gaussian import NormMatchedGaussian
from moesaic.losses.dpsl import Dpsl
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.studies.arm import Arm
from moesaic.studies.catalogue import speech_translation
from moesaic.studies.study import Study
from moesaic.studies.usual import MOE
from moesaic.training.recipe import Loss

LANGUAGES = 16
STEPS, BATCH = 48, 16
RATES = (5e-5, 1e-4)
ROUTER_RATE = 30.0
"""Times the learning rate: what pretrained weights bear moves a new router next to nothing in a hundred steps."""


def make(*, smoke: bool) -> Study:
    """Return the study; of `smoke`, two arms and a few steps."""
    study = speech_translation.make(smoke=smoke)
    chosen = [arm for arm in arms() if arm.name in ("balance", "dpsl")] if smoke else arms()
    if not smoke:
        budget = replace(study.budget, steps=STEPS, batch_size=BATCH)
        study = replace(study, budget=budget, rates=RATES, tuning_seeds=1)
    return replace(
        study,
        name="router_losses",
        question="Whisper base learns to write 16 languages with 8 experts that start alike: which loss makes its "
        "routers sure, balanced and aware of the language, and does the translation gain?",
        arms=tuple(chosen),
        references=("balance",) if smoke else ("none",),
    )


def arms() -> tuple[Arm, ...]:
    """Return the losses; experts, routers and learning rates are the same for all."""

    def arm(name: str, what: str, *losses: Loss, **further: Any) -> Arm:
        return Arm(
            name, what, "published", NormMatchedGaussian(), spec=MOE, losses=losses, router_rate=ROUTER_RATE, **further
        )

    balance = LoadBalancing(weight=1e-2)
    return (
        arm("none", "no router loss"),
        arm("balance", "load balancing 1e-2", balance),
        arm("balance-z", "load balancing 1e-2, router z 1e-3", balance, RouterZ(weight=1e-3)),
        arm("dpsl", "Dirichlet prior, alpha 0.25 for all experts", Dpsl(weight=1.0, alpha=0.25)),
        arm("dpsl-languages", "two languages prefer each expert", Dpsl(weight=1.0, priors=preferring())),
    )


def preferring(experts: int = MOE.num_experts, groups: int = LANGUAGES) -> tuple[tuple[float, ...], ...]:
    """Return a prior for each group that gives one expert, each in its turn, the mean share 1 / 1.7, the rest alike.

    >>> preferring(2, 2)
    ((1.0, 0.1), (0.1, 1.0))
    """
    return tuple(
        tuple(1.0 if expert == group % experts else 0.1 for expert in range(experts)) for group in range(groups)
    )
