"""Converting a 331M-parameter Llama to 8 experts: moesaic beside mergekit, MixtureKit and `cp` of the same bytes.

Makes the dense model (random bf16 weights, 4 shards), runs the tools in turn, several rounds, and prints the median of
each number as a Markdown table. Every tool is one process; `cp` copies the folder that moesaic wrote.

    python benchmarks/conversion.py --mergekit M/bin/python --mixturekit K/bin/python

where the two environments, left out if not given, are made by

    python -m venv M && M/bin/pip install torch && M/bin/pip install mergekit==0.1.5
    python -m venv K && K/bin/pip install torch && K/bin/pip install MixtureKit==1.1.1
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from measure import GIB, Cost, machine, median, run, table

HIDDEN, WIDTH, LAYERS, VOCABULARY, EXPERTS = 1024, 4096, 20, 8192, 8
Command = list[str | Path]


def make_dense(folder: Path) -> int:
    """Write the dense model and a tokenizer (mergekit wants one); return its number of parameters."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="170MB")
    words = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return model.num_parameters()


def beside(path: Path, name: str) -> Path:
    """Return the command of this name in the environment that `path`, its python or any command, stands in."""
    return path.absolute().with_name(name)


def commands(args: argparse.Namespace, dense: Path, out: Path, reference: Path) -> dict[str, Command]:
    """Return what to run, by the name of its row."""
    moesaic: Command = [beside(Path(sys.executable), "moesaic"), "upcycle", dense, out, "--no-certify", "--experts"]
    found: dict[str, Command] = {"`cp`, same bytes": ["cp", "-r", reference, out]}
    found["moesaic, sparse_upcycling"] = [*moesaic, "sparse_upcycling"]
    if args.mergekit:
        config = dense.with_name("mergekit.yaml")
        experts = "".join(f"  - source_model: {dense}\n" for _ in range(EXPERTS))
        config.write_text(f"base_model: {dense}\ngate_mode: random\ndtype: bfloat16\nexperts:\n{experts}")
        merge: Command = [beside(args.mergekit, "mergekit-moe"), config, out, "--quiet"]
        merge.append("--i-understand-this-is-not-useful-without-training")
        found["mergekit-moe"] = merge
        found["mergekit-moe, `--out-shard-size 200M`"] = [*merge, "--out-shard-size", "200M"]
    if args.mixturekit:
        config = dense.with_name("mixturekit.yaml")
        experts = "".join(f"  - expert_name: e{i}\n    model_id: {dense}\n" for i in range(EXPERTS))
        config.write_text(
            f"moe_method: traditional\nmodel_type: moe_llama\nnum_experts_per_tok: 2\nexperts:\n{experts}"
            "router_layers: [gate_proj, up_proj, down_proj]\n"
        )
        found["MixtureKit, traditional"] = [beside(args.mixturekit, "mixturekit"), "build", config, "--output", out]
    if not args.no_spri:
        found["moesaic, spri (with a shared expert)"] = [*moesaic, "spri"]
    return found


def folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measured(args: argparse.Namespace, work: Path) -> str:
    """Run everything in turn, `args.runs` rounds after one that only warms up; return the table."""
    dense, out, reference = work / "dense", work / "out", work / "reference"
    parameters = make_dense(dense)
    shards = len(list(dense.glob("*.safetensors")))
    print(f"{parameters / 1e6:.1f}M parameters in {shards} shards, {folder_bytes(dense) / GIB:.2f} GiB, bf16\n")
    run(commands(args, dense, reference, dense)["moesaic, sparse_upcycling"], work / "log")
    costs: dict[str, list[Cost]] = {}
    sizes: dict[str, int] = {}
    for turn in range(args.runs + 1):
        for name, command in commands(args, dense, out, reference).items():
            if args.only not in name:
                continue
            os.sync()  # no tool pays for writing back what the one before it wrote
            cost = run(command, work / "log")
            sizes[name] = folder_bytes(out)
            shutil.rmtree(out)
            print(f"{turn or 'warm-up'}: {name}: {cost.cpu:.2f} CPU s, {cost.wall:.2f} s", file=sys.stderr)
            if turn:
                costs.setdefault(name, []).append(cost)
    rows = []
    for name, cost in ((name, median(found)) for name, found in costs.items()):
        memory = f"{cost.anonymous / GIB:.3f}", f"{cost.resident / GIB:.2f}", f"{sizes[name] / GIB:.2f}"
        rows.append((name, f"{cost.cpu:.2f}", f"{cost.wall:.2f}", *memory))
    return table(("", "CPU s", "wall s", "peak anonymous GiB", "peak RSS GiB", "written GiB"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", type=Path, help="python (or any command) of mergekit's environment")
    parser.add_argument("--mixturekit", type=Path, help="python (or any command) of MixtureKit's environment")
    parser.add_argument("--no-spri", action="store_true", help="leave the computed method out")
    parser.add_argument("--only", default="", help="only rows whose name holds this text")
    parser.add_argument("--runs", type=int, default=3, help="rounds counted, after one that warms up")
    parser.add_argument(
        "--dir", type=Path, help="where to write about 10 GiB; the system's temporary folder if left out"
    )
    args = parser.parse_args()
    print(f"{machine()}; moesaic {version('moesaic')}, torch {version('torch')}; median of {args.runs}")
    with tempfile.TemporaryDirectory(dir=args.dir) as work:
        print(measured(args, Path(work)))


if __name__ == "__main__":
    main()
