"""What each expert init changes in a real model, and what the certificate costs whole and layer by layer.

First every registered expert init on SmolLM2-135M (8 experts, top-2, every 4th layer), before any training, above two
lines for scale: the same dense weights run in float64, and rounded to bfloat16. Then memory and CPU seconds of
`moesaic certify` on the last two of them, each run in a process of its own.

    python benchmarks/certificate.py [--tokens 1024] [METHOD...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import measure
from moesaic.api import upcycle
from moesaic.certify import certify
from moesaic.certify.capture import load, run
from moesaic.certify.certificate import Certificate
from moesaic.certify.source import Source
from moesaic.certify.tally import Tally
from moesaic.certify.text import Text
from moesaic.checkpoints.sources import resolve
from moesaic.errors import PlanError
from moesaic.experts.base import ExpertInit
from moesaic.method import registry
from moesaic.spec import Layers, MoESpec

SOURCE = "smollm2-135m"
SPEC = MoESpec(8, 2, layers=Layers("every:4"))
HEAD = ("method", "promised", "max logit diff", "of largest", "KL, nats", "top-1, %", "loss change", "diversity")


def row(name: str, found: Certificate) -> tuple[str, ...]:
    diverse = [layer["diversity"] for layer in found.layers if "diversity" in layer]
    return (
        name,
        "yes" if found.promised else "",
        f"{found.max_logit_diff:.2g}",
        f"{found.max_logit_diff / found.max_logit:.1e}",
        f"{found.kl:.2g}",
        f"{100 * found.agreement:.2f}",
        f"{found.loss_change:+.2g}",
        f"{sum(diverse) / len(diverse):.3f}" if diverse else "",
    )


def scale(dense: Path, tokens: int) -> Iterator[tuple[str, Certificate]]:
    """Yield what rounding alone does: the reference is float32 as everywhere."""
    source = Source.open(dense)
    text = Text.read(dense, None, tokens, source.vocab_and_hidden[0])
    cast: dict[str, Callable[[], torch.nn.Module]] = {
        "dense in float64": lambda: load(dense, source.config, torch.float64),
        "dense rounded to bfloat16": lambda: load(dense, source.config, torch.bfloat16).float(),
    }
    reference = load(dense, source.config, torch.float32)
    for name, make in cast.items():
        tally, other = Tally(), make()
        for batch in text.batches(tokens):
            logits = [run(model, batch.ids(), tally_nothing) for model in (reference, other)]
            for dense_TV, other_TV, ids in zip(*logits, batch.sequences, strict=True):
                tally.logits(dense_TV[: len(ids)], other_TV[: len(ids)], torch.tensor(ids))
        yield name, Certificate.of(tally, text.name, promised=False)


def tally_nothing(_layer: int, _seen: torch.Tensor) -> None:
    return None


def changes(dense: Path, folder: Path, methods: list[str], tokens: int) -> Iterator[tuple[str, ...]]:
    for name, method in registry("moesaic.experts", ExpertInit).items():
        if methods and name not in methods:
            continue
        try:
            made = upcycle(dense, folder / name, SPEC, experts=method(), certify=False)
        except PlanError as error:
            yield (name, str(error).splitlines()[-1].strip(), *[""] * (len(HEAD) - 2))
            continue
        yield row(name, certify(dense, made.folder, max_tokens=tokens))
    for name, found in scale(dense, tokens):
        yield row(name, found)


def costs(dense: Path, moe: Path, tokens: int) -> Iterator[tuple[str, ...]]:
    start = [sys.executable, "-c", "from moesaic.cli import main; main()", "certify", str(dense), str(moe)]
    idle = [
        sys.executable,
        "-c",
        "import torch, transformers; transformers.AutoTokenizer, transformers.MixtralForCausalLM",
    ]
    for name, command in {
        "torch and transformers imported": idle,
        "both models at once": [*start, "--json", "--max-tokens", str(tokens)],
        "layer by layer": [*start, "--json", "--max-tokens", str(tokens), "--layer-by-layer"],
    }.items():
        cost = measure.run(command, moe.with_suffix(".log"))
        yield name, f"{cost.cpu:.0f}", f"{cost.wall:.0f}", f"{cost.anonymous / 1e6:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args()
    dense = resolve(SOURCE)
    print(f"{measure.machine()}; {SOURCE}, 8 experts, top-2, every 4th layer; {given.tokens} tokens of built-in text\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(measure.table(HEAD, changes(dense, folder, given.methods, given.tokens)), end="\n\n", flush=True)
        moe = next(path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir())
        print(f"The certificate of {moe.name}:\n")
        head = ("how", "CPU s", "wall s", "peak RssAnon, MB")
        print(measure.table(head, costs(dense, moe, given.tokens)))


if __name__ == "__main__":
    main()
