"""DPSL beside the same loss by scipy's Beta distribution, and beside the training step that it goes into.

SmolLM2-135M upcycled in all of its 30 layers (8 experts, top-2, with moesaic's computation of experts) reads 2,048
tokens of built-in text. The loss and its gradient are taken on the routing of that pass: by scipy as methods have it,
one Beta per expert on sorted columns; by moesaic without and with autograd; and from the logits of all layers, as it
goes into the step. One thread, CPU time, all in turn, minimum over the rounds.

    python benchmarks/dpsl.py [--rounds 5] [--tokens 2048] [--alpha 0.25] [--dtype float32]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor
from transformers import AutoModelForCausalLM

from measure import machine, table
from moesaic.api import upcycle
from moesaic.certification.text import Text
from moesaic.checkpoints.sources import resolve
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.losses.dirichlet_prior import dirichlet_prior_shaping, shaped, tables
from moesaic.losses.dpsl import Dpsl
from moesaic.modeling import stock
from moesaic.routing import Routing
from moesaic.spec import MoESpec

SOURCE = "smollm2-135m"
SEQUENCE = 512  # tokens
FAST = 8  # turns of what takes milliseconds in each round


def by_scipy(probs_TE: Tensor, alpha_E: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient."""
    sorted_TE, order_TE = probs_TE.sort(0)
    x_TE = sorted_TE.clamp(1e-6, 1 - 1e-6).numpy()
    quantile_T = np.arange(1, len(x_TE) + 1) / (len(x_TE) + 1)
    gap_TE, grad_TE = np.empty(x_TE.shape), np.empty(x_TE.shape)
    for expert, alpha in enumerate(alpha_E):
        rest = sum(alpha_E) - alpha
        gap_TE[:, expert] = beta.cdf(x_TE[:, expert], alpha, rest) - quantile_T
        grad_TE[:, expert] = gap_TE[:, expert] * beta.pdf(x_TE[:, expert], alpha, rest).clip(1e-3, 100)
    grad = torch.from_numpy(2 / x_TE.size * grad_TE).float()
    return torch.tensor(np.square(gap_TE).mean()), torch.empty_like(grad).scatter_(0, order_TE, grad)


def upcycled(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    upcycle(SOURCE, folder, MoESpec(8, 2, shared_expert=False), experts=SparseUpcycling(), certify=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.set_experts_implementation(stock.NAME)
    return model.train()


def ids(model: torch.nn.Module, tokens: int) -> Tensor:
    """Return tokens in rows, of the built-in passages as often as it takes."""
    text = Text.read(resolve(SOURCE), None, tokens, model.config.vocab_size)
    flat = torch.tensor([token for batch in text.batches(tokens) for row in batch.sequences for token in row])
    return flat.repeat(-(-tokens // len(flat)))[:tokens].view(-1, min(SEQUENCE, tokens))


def step(model: torch.nn.Module, ids_BS: Tensor) -> None:
    model.zero_grad()
    model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss.backward()


def seconds(function: Callable[[], object], turns: int) -> float:
    best = float("inf")
    for _ in range(turns):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


def rows(folder: Path, given: argparse.Namespace) -> Iterator[list[str]]:
    model = upcycled(folder, getattr(torch, given.dtype))
    ids_BS = ids(model, given.tokens)
    with torch.no_grad():
        logits = model(input_ids=ids_BS, output_router_logits=True, use_cache=False).router_logits
    logits = [logits_TE.float().requires_grad_() for logits_TE in logits]
    probs = [logits_TE.detach().softmax(-1).requires_grad_() for logits_TE in logits]
    routed = [Routing.from_logits(logits_TE.detach(), top_k=2) for logits_TE in logits]
    alpha_E, loss = (given.alpha,) * probs[0].shape[1], Dpsl(alpha=given.alpha, max_tokens=max(32, given.tokens))
    _agree([by_scipy(p.detach(), alpha_E) for p in probs], [_ours(p.detach(), alpha_E) for p in probs])
    layers: dict[str, Callable[[], object]] = {
        "the loss and its gradient, by scipy": lambda: [by_scipy(p.detach(), alpha_E) for p in probs],
        "the same, by moesaic": lambda: [_ours(p.detach(), alpha_E) for p in probs],
        "the same, through autograd": lambda: torch.autograd.grad(
            [dirichlet_prior_shaping(p, alpha_E) for p in probs], probs
        ),
        "`Dpsl` from the router's logits, softmax included": lambda: torch.autograd.grad(
            [loss.loss(replace(one, probs_TE=x.softmax(-1))) for one, x in zip(routed, logits, strict=True)], logits
        ),
    }
    turns = {name: FAST if "scipy" not in name else 2 for name in layers}
    best = dict.fromkeys([*layers, "training step, forward and backward"], float("inf"))
    for _ in range(given.rounds):
        for name, function in layers.items():
            best[name] = min(best[name], seconds(function, turns[name]))
        best["training step, forward and backward"] = min(
            best["training step, forward and backward"], seconds(lambda: step(model, ids_BS), 1)
        )
    scipy, whole = best["the loss and its gradient, by scipy"], best["training step, forward and backward"]
    for name, found in best.items():
        yield [name, f"{1e3 * found:,.1f}", f"{scipy / found:.1f}" if found < scipy else "", f"{found / whole:.3%}"]


def _ours(probs_TE: Tensor, alpha_E: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    loss, grad_TE, factor = shaped(probs_TE, *tables(alpha_E, probs_TE.dtype, probs_TE.device))
    return loss, grad_TE.mul_(factor)


def _agree(expected: list[tuple[Tensor, Tensor]], found: list[tuple[Tensor, Tensor]]) -> None:
    """Stop where both do not compute the same loss."""
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other[0].double(), one[0].double(), rtol=1e-4, atol=1e-6)
        off = float((other[1] - one[1]).norm() / one[1].norm())
        assert off < 1e-3, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--alpha", type=float, default=0.25)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stock.register()
    what = f"{SOURCE} 8x top-2 in {given.dtype}, {given.tokens} tokens"
    print(f"{machine()}, torch {torch.__version__}, one thread; {what}\n")
    with tempfile.TemporaryDirectory() as folder:
        head = ("all 30 layers", "CPU ms", "times faster than scipy", "of a step")
        print(table(head, rows(Path(folder) / "moe", given)))


if __name__ == "__main__":
    main()
