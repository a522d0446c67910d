"""The demo: a real model, upcycled, certified, and asked the same questions as its dense parent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.api import Progress, upcycled
from moesaic.certification import Certificate, SplicedCertificate
from moesaic.checkpoints.dense import read_json
from moesaic.checkpoints.sources import resolve
from moesaic.convert import Options, Writing
from moesaic.experts.spri import Spri
from moesaic.informing import Knowledge
from moesaic.lazy import torch
from moesaic.modeling.loading import load
from moesaic.spec import Layers, MoESpec

SOURCE = "smollm2-135m"
PROMPTS = ("The capital of France is", "The opposite of hot is", "Once upon a time, there was a")
NEW_TOKENS = 12


@dataclass(frozen=True)
class Demo:
    """What the demo made: the folder, the certificate, and (prompt, dense answer, MoE answer) rows."""

    folder: Path
    certificate: Certificate | SplicedCertificate
    answers: list[tuple[str, str, str]]


def run(out: Path, *, overwrite: bool, say: Callable[[str], None], progress: Progress) -> Demo:
    """Upcycle SmolLM2-135M with SPRI: 8 experts, top-2, a shared expert, every 4th layer.

    Args:
        out: the folder to make. overwrite: replace an earlier demo. say, progress: told how far it is.

    Reference: Shan et al. 2026, SPRI, arXiv 2606.16456 (the paper's constants).
    """
    options = Options(MoESpec(num_experts=8, top_k=2, layers=Layers("every:4")), Spri())
    made = upcycled(SOURCE, out, options, Writing(overwrite=overwrite), Knowledge(), say=say, progress=progress)
    assert made.certificate is not None
    dense = _answers(resolve(SOURCE), "answer (dense)", progress)
    moe = _answers(out, "answer (MoE)", progress)
    return Demo(out, made.certificate, list(zip(PROMPTS, dense, moe, strict=True)))


def _answers(folder: Path, stage: str, progress: Progress) -> list[str]:
    """Return the greedy continuation of every prompt."""
    import transformers  # noqa: PLC0415  # seconds of import, needed here only

    model: Any = load(folder, read_json(folder / "config.json"), torch.float32)  # generate() has no usable type
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers: list[str] = []
    for prompt in PROMPTS:
        ids_1T = tokenizer(prompt, return_tensors="pt")["input_ids"]
        longer = model.generate(input_ids=ids_1T, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers.append(str(tokenizer.decode(longer[0, ids_1T.shape[1] :], skip_special_tokens=True)).strip())
        progress(stage, 1, len(PROMPTS))
    return answers
