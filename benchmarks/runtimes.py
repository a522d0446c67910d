"""What a runtime computes from a model folder: run by serving.py in the interpreter that has the runtime.

    python benchmarks/runtimes.py RUNTIME FOLDER...

Stores FOLDER/RUNTIME.pt: logits, or vLLM's log-probabilities. Needs torch and the runtime, not moesaic.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

VOCABULARY = 128


def tokens() -> list[list[int]]:
    """Return the prompts, longer than the tiny models' windows."""
    return [[3 + (7 * i * i + 31 * row) % 117 for i in range(24)] for row in range(2)]


def by_transformers(folder: Path) -> Any:
    """Return logits [rows, positions, vocabulary]."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="float32")(torch.tensor(tokens())).logits


def by_vllm(folder: Path) -> Any:
    """Return log-probabilities [rows, positions - 1, vocabulary]."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()  # of the folder before
    model = LLM(
        str(folder),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=64,
        max_logprobs=VOCABULARY,
        max_num_seqs=2,
    )
    sampling = SamplingParams(max_tokens=1, prompt_logprobs=VOCABULARY, detokenize=False)
    answers = model.generate([{"prompt_token_ids": row} for row in tokens()], sampling)
    found = [
        [[position[i].logprob for i in range(VOCABULARY)] for position in answer.prompt_logprobs[1:]]
        for answer in answers
    ]
    return torch.tensor(found)


def by_llama(folder: Path) -> Any:
    """Return logits [rows, positions, vocabulary], by way of a GGUF file without a vocabulary."""
    import torch

    sys.path[:0] = [os.environ["LLAMA_SOURCE"], os.environ["LLAMA_SOURCE"] + "/gguf-py"]
    import gguf
    from llama_cpp import Llama

    from conversion import get_model_class

    base = get_model_class(json.loads((folder / "config.json").read_text())["architectures"][0])

    class WithoutVocabulary(base):  # type: ignore[misc,valid-type]
        model_arch = base.model_arch
        no_mtp = True  # as its --no-mtp: the dense models have no layer that predicts several tokens

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("no_vocab")
            self.gguf_writer.add_vocab_size(VOCABULARY)

    file = folder / "model.gguf"
    with torch.inference_mode():
        WithoutVocabulary(folder, gguf.LlamaFileType.ALL_F32, file).write()
    # Keys and values are cached in float32 (0): in the default float16 they alone cost 3e-3.
    model = Llama(str(file), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0)
    found = []
    for row in tokens():
        model.reset()
        model.eval(row)
        found.append(torch.from_numpy(model.scores[: len(row)].copy()))
    return torch.stack(found)


RUNTIMES = {"transformers": by_transformers, "vllm": by_vllm, "llama.cpp": by_llama}


if __name__ == "__main__":
    import torch

    for path in map(Path, sys.argv[2:]):
        torch.save(RUNTIMES[sys.argv[1]](path), path / f"{sys.argv[1]}.pt")
