"""What all studies compare alike: the MoE, the published router losses, and the control without routing."""

from __future__ import annotations

from dataclasses import replace

from moesaic.experts.norm_matched_gaussian import NormMatchedGaussian
from moesaic.experts.spri import Spri
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.routers.zeros import Zeros
from moesaic.spec import MoESpec
from moesaic.studies.arm import ALWAYS_ON, Arm

BALANCE = (LoadBalancing(weight=1e-2), RouterZ(weight=1e-3))
"""Router losses of SPRI, with which all published methods train."""
MOE = MoESpec(num_experts=8, top_k=2, shared_expert=True)
BARE = replace(MOE, shared_expert=False)
ISO_FLOP = Arm(
    "iso-flop",
    "two further FFNs, always on, no routing",
    "control",
    NormMatchedGaussian(),
    router=Zeros(),
    spec=replace(MOE, num_experts=2),
    stages=ALWAYS_ON,
)
"""As many operations a token as `MOE`, in as many further parameters as these use."""
UP_ISO_FLOP = replace(
    ISO_FLOP,
    name="iso-flop-up",
    what="the same of SPRI's blocks in the first linear",
    experts=Spri(placement="up"),
)
