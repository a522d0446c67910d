"""Observing routers: one `Routing` per MoE layer and forward pass, from any model."""

from moesaic.observing.blocks import MoEBlock, inner, moe_blocks
from moesaic.observing.passes import Observer, Pass, Seen, observe
from moesaic.observing.rows import GROUPS, TokenRows, tokens

__all__ = ["GROUPS", "MoEBlock", "Observer", "Pass", "Seen", "TokenRows", "inner", "moe_blocks", "observe", "tokens"]
