"""Dirichlet-prior shaping loss (DPSL)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moesaic.lazy import torch
from moesaic.losses.base import RouterLoss
from moesaic.losses.dirichlet_prior import dirichlet_prior_shaping
from moesaic.method import number
from moesaic.routing import NO_GROUP, Routing

ALPHA = (1e-2, 100.0)
"""Range of a concentration: below, most of the prior lies beyond the clamp at 1e-6; above, routing is uniform."""


@dataclass(frozen=True)
class Dpsl(RouterLoss):
    """Shapes a layer's routing probabilities like samples of a Dirichlet prior, which sets balance and confidence.

    Every expert's probabilities, sorted, should be the quantiles of its marginal Beta(alpha_k, A - alpha_k): the same
    mean for all balances the experts, a small alpha makes the router sure. For 8 experts and alpha 0.1, 0.25, 0.5, 1
    the prior's entropy is .33, .55, .71, .82 of ln 8, and the mean largest probability .73, .54, .43, .34.
    `LoadBalancing` balances alone and leaves copied experts to an undecided router. `priors` gives each group of tokens
    (language, modality, task) experts of its own, which balance only together. A router of zeros is a saddle point.
    The loss itself serves any probabilities: `losses.dirichlet_prior.dirichlet_prior_shaping`.

    Reference: Mirvakhabova et al. 2025, Dirichlet-Prior Shaping: Guiding Expert Specialization in Upcycled MoEs,
        arXiv 2510.01185.
    Deviates: the distance to the prior is that of the authors' Batch-Shaping (Ehteshami Bejnordi et al. 2019,
        arXiv 1907.06627), with the mean over experts.

    Args:
        weight: factor in the training loss.
        alpha: concentration of the symmetric prior, for each expert; of all tokens, or of those that have no group.
        priors: concentrations [E] for each group of tokens, in the order of their indices; none: one symmetric prior.
            The loss is the sum over groups of their share of the tokens times their loss.
        group_shares: share of the tokens in each group, fractions that sum to 1; none: all alike. Only to check that
            the priors balance: a batch may be skewed.
        tolerance: largest relative deviation of an expert's mean share under the priors from 1/E.
        max_tokens: tokens of a group that are looked at, evenly spaced in the batch where it has more.
        min_tokens: groups with fewer tokens in the batch are left out of it: so few say little of a distribution.

    >>> import torch
    >>> sure, unsure = (Routing.from_logits(s * torch.eye(8).repeat(8, 1), top_k=2) for s in (5.0, 0.1))
    >>> bool(Dpsl(alpha=0.1).loss(sure) < Dpsl(alpha=0.1).loss(unsure))
    True
    """

    alpha: float = number(0.25, low=ALPHA[0], high=ALPHA[1])
    priors: tuple[tuple[float, ...], ...] = ()
    group_shares: tuple[float, ...] = ()
    tolerance: float = number(0.1, low=0.0, high=1e6)
    max_tokens: int = number(8192, low=32, high=1e7, unit="tokens")
    min_tokens: int = number(32, low=2, high=1e6, unit="tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "priors", tuple(map(tuple, self.priors)))  # JSON gives lists
        object.__setattr__(self, "group_shares", tuple(self.group_shares))
        for group, prior in enumerate(self.priors):
            for expert, alpha in enumerate(prior):
                if not ALPHA[0] <= alpha <= ALPHA[1]:
                    raise ValueError(
                        f"dpsl: priors must be alphas from {ALPHA[0]:g} to {ALPHA[1]:g}. "
                        f"Got {alpha!r} for expert {expert} in group {group}."
                    )
        shares = self.group_shares
        if shares and (
            len(shares) != len(self.priors) or not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-6
        ):
            raise ValueError(
                f"dpsl: group_shares must be a positive fraction for each of the {len(self.priors)} priors, "
                f"1 in sum. Got {shares}. Leave group_shares out where groups are equally large."
            )

    def prepare(self, num_experts: int) -> None:
        """Check that each prior has E alphas and that together they balance the experts.

        Raises:
            ValueError: where they do not.
        """
        if num_experts < 2:
            raise ValueError(f"dpsl: a layer must have at least 2 experts. Got {num_experts}. Leave the loss out.")
        for group, prior in enumerate(self.priors):
            if len(prior) != num_experts:
                raise ValueError(
                    f"dpsl: each prior must have one alpha for each of the {num_experts} experts. "
                    f"Got {len(prior)} in group {group}."
                )
        if self.priors:
            self._check_balance(num_experts)

    def _check_balance(self, num_experts: int) -> None:
        shares = self.group_shares or (1 / len(self.priors),) * len(self.priors)
        mean = [
            math.fsum(
                share * prior[expert] / math.fsum(prior) for share, prior in zip(shares, self.priors, strict=True)
            )
            for expert in range(num_experts)
        ]
        off = {e: share for e, share in enumerate(mean) if abs(num_experts * share - 1) > self.tolerance + 1e-9}
        if off:
            named = ", ".join(f"{share:.3g} for expert {expert}" for expert, share in list(off.items())[:8])
            raise ValueError(
                f"dpsl: the priors must give each expert a mean share of 1/{num_experts} = {1 / num_experts:.3g} "
                f"of the tokens, within {self.tolerance:g} of that. Got {named}{', ...' if len(off) > 8 else ''}. "
                "Give these experts more or less alpha in one of the groups; or state group_shares, where groups are "
                "not equally large; or widen tolerance, where you want experts unequally loaded."
            )

    def loss(self, routing: Routing) -> torch.Tensor:
        """Return the loss; 0 where every group has fewer than `min_tokens` tokens.

        Raises:
            ValueError: where there are priors, and tokens have no groups or one without a prior.
        """
        shares_TE = routing.shares_TE
        if not self.priors:
            return self._shaped(shares_TE, self._symmetric(routing.num_experts))
        if routing.group_T is None:
            raise ValueError(
                "dpsl: tokens must have groups where there are priors. Got none. Let the batch name each token's "
                "group, or leave priors out."
            )
        groups, counts = (found.tolist() for found in routing.group_T.unique(return_counts=True))
        if unknown := [group for group in groups if not NO_GROUP <= group < len(self.priors)]:
            raise ValueError(
                f"dpsl: every group of tokens must have a prior. Got {len(self.priors)} priors and tokens of group "
                f"{unknown[0]}. Add a prior, or give these tokens the group {NO_GROUP} for the symmetric one."
            )
        priors = (*self.priors, self._symmetric(routing.num_experts))  # the last is the one of NO_GROUP, -1
        total = shares_TE.new_zeros(())
        for group, count in zip(groups, counts, strict=True):
            of_group_TE = shares_TE[routing.group_T == group]
            total = total + count / len(shares_TE) * self._shaped(of_group_TE, priors[group])
        return total

    def _symmetric(self, num_experts: int) -> tuple[float, ...]:
        return (self.alpha,) * num_experts

    def _shaped(self, shares_TE: torch.Tensor, alpha_E: tuple[float, ...]) -> torch.Tensor:
        tokens = len(shares_TE)
        if tokens < self.min_tokens:
            return 0.0 * shares_TE.sum()
        if tokens > self.max_tokens:
            index = torch.arange(self.max_tokens, device=shares_TE.device) * tokens // self.max_tokens
            shares_TE = shares_TE[index]
        return dirichlet_prior_shaping(shares_TE, alpha_E)
