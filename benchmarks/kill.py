"""kill -9 at 30 random moments of one conversion: each time, what is left, and what --resume makes of it.

    python -m benchmarks.kill [KILLS] [METHOD]

A random Llama of 5 million parameters becomes 8 experts by SPRI and is certified. Half of the moments lie in the time
that checking and writing take, half in the certification and publication. Each run is killed once, every third one
again while it resumes. A run counts only if nothing that is not whole loads, and if the resumed folder equals an
undisturbed one byte for byte, certificate included.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tests.integration.killing import Killer, at_moments, child, finish

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def make(source: Path) -> int:
    """Write the dense model."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.to(torch.bfloat16).save_pretrained(source, max_shard_size="3MB")
    return 0


def main(kills: int = 30, method: str = "spri") -> None:
    """Print the table and the counts; fail if a single run does."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "llama"
        assert finish(child(lambda: make(source))) == 0  # this process must stay without threads, to fork
        (Path(work) / "made").mkdir()
        killer = Killer(source, Path(work) / "made" / "moe", "--experts", method)
        print(f"undisturbed: {killer.seconds:.1f} s, {len(killer.whole)} files\n")
        print("| killed at | what was there | loads | whole after --resume |\n|---|---|---|---|")
        writing = Killer(source, Path(work) / "made" / "moe", "--experts", method, "--no-certify").seconds
        half = kills // 2
        found = at_moments(killer, half, 0, writing) + at_moments(killer, kills - half, writing, killer.seconds)
        for kill in found:
            same = "byte-identical" if kill.same else "DIFFERS"
            print(f"| {kill.when} | {kill.stage} | {'YES' if kill.loads else 'no'} | {same} |")
    done = sum(kill.stage == "finished" for kill in found)
    good = sum(kill.same and kill.whole and not kill.loads for kill in found)
    print(f"\n{good} of {len(found)} as promised; {done} had finished before the kill came.")
    if good < len(found):
        sys.exit(1)


if __name__ == "__main__":
    main(*(int(word) if word.isdigit() else word for word in sys.argv[1:]))
