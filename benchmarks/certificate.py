"""What each expert init changes in a real model, and what the certificate costs whole and layer by layer.

First every registered expert init on SmolLM2-135M (8 experts, top-2, every 4th layer), before any training, above two
lines for scale: the same dense weights run in float64, and rounded to bfloat16. Then memory and CPU seconds of
`moesaic certify`, each run in a process of its own: on the last of them, and on a random Llama of 0.2 billion
parameters with 8 experts in all of its 12 layers (1.3 billion).

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
from moesaic.certification import certify
from moesaic.certification.capture import run
from moesaic.certification.certificate import Certificate
from moesaic.certification.source import Source
from moesaic.certification.tally import Tally
from moesaic.certification.text import Text
from moesaic.checkpoints.sources import resolve
from moesaic.errors import PlanError
from moesaic.experts.base import ExpertInit
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.method import registry
from moesaic.modeling.loading import load
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


def random_llama(folder: Path) -> Path:
    """Write a Llama with wide layers and a small vocabulary, so that its layers are what takes the memory."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=4, dtype="bfloat16",
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def costs(pairs: dict[str, tuple[Path, Path]], tokens: int) -> Iterator[tuple[str, ...]]:
    def certificate(dense: Path, moe: Path, *flags: str) -> list[str]:
        words = ["certify", str(dense), str(moe), "--json", "--max-tokens", str(tokens), *flags]
        return [sys.executable, "-c", "from moesaic.cli import main; main()", *words]

    classes = "transformers.AutoTokenizer, transformers.LlamaForCausalLM, transformers.MixtralForCausalLM"
    commands = {"torch and transformers, imported": [sys.executable, "-c", f"import torch, transformers; {classes}"]}
    for name, pair in pairs.items():
        commands[f"{name}, at once"] = certificate(*pair)
        commands[f"{name}, layer by layer"] = certificate(*pair, "--layer-by-layer")
    for name, command in commands.items():
        with tempfile.NamedTemporaryFile() as log:
            cost = measure.run(command, Path(log.name))
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
        large = random_llama(folder / "llama-0.2b"), folder / "llama-0.2b-moe"
        upcycle(*large, MoESpec(8, 2), experts=SparseUpcycling(), certify=False)
        pairs = {f"{SOURCE}, {moe.name}": (dense, moe), "random Llama": large}
        head = ("certificate of", "CPU s", "wall s", "peak RssAnon, MB")
        print(measure.table(head, costs(pairs, given.tokens)))


if __name__ == "__main__":
    main()
