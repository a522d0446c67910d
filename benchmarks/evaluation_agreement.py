"""How far our perplexity, BLEU and chrF are from those of the tools that papers cite, on the same texts.

Perplexity: SmolLM2-135M on held-out pieces of the corpus `domains`, by our task `perplexity` with a stride as long as
its window, and by lm-eval's `loglikelihood_rolling` through its Python API, which reads the documents from a file.
BLEU and chrF: paragraphs of the corpus `manual` as references, the same with words left out and exchanged as
hypotheses, by the metrics of our translation tasks and by sacreBLEU's command line. Fails where a perplexity is more
than 0.1 % off, or a score differs in any of ten digits.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/evaluation_agreement.py [--characters 40000] [--window 1024]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesaic.checkpoints.sources import resolve
from moesaic.corpora.domains import Domains
from moesaic.corpora.manual import Manual
from moesaic.evaluation import Evaluation, Metric, evaluate
from moesaic.evaluation.scoring import Bleu, Chrf
from moesaic.evaluation.tasks.perplexity import Perplexity
from moesaic.seeds import Stream

MODEL, BATCH = "smollm2-135m", 4
CLOSE = 1e-3  # of a perplexity
DIGITS = 10
METRICS = ("word_perplexity", "byte_perplexity", "bits_per_byte")
LANGUAGES = ("de", "fr", "ru", "ja")


def documents(characters: int) -> list[dict[str, str]]:
    """Return held-out texts of all domains until there are so many characters."""
    found: list[dict[str, str]] = []
    for row in Domains().rows("test", say=print):
        if sum(len(one["text"]) for one in found) >= characters:
            break
        found.append({"text": row["text"], "label": row["label"]})
    return found


def theirs(rows: Sequence[Mapping[str, str]], folder: Path, window: int) -> dict[str, float]:
    """Return what lm-eval makes of the documents."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "agreement",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": name} for name in METRICS],
    }
    source = resolve(MODEL, progress=print)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    wrapped = HFLM(model, "causal", tokenizer=tokenizer, batch_size=BATCH, max_length=window, device="cpu")
    manager = TaskManager(include_defaults=False)
    found: Any = lm_eval.simple_evaluate(wrapped, tasks=[task], task_manager=manager, bootstrap_iters=0)
    return {name: float(found["results"]["agreement"][f"{name},none"]) for name in METRICS}


def ours(found: Evaluation, rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Return the same of our records; words as lm-eval counts them."""
    words = sum(len(re.split(r"\s+", row["text"])) for row in rows)
    nats = sum(float(row["nats"]) for row in found.records)
    bits = found.value("bits per byte")
    return {"word_perplexity": math.exp(nats / words), "byte_perplexity": 2**bits, "bits_per_byte": bits}


def pairs(count: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield of each language hypotheses and references: every sixth word left out, every ninth exchanged with the next.

    Japanese is not written in words, so its characters are taken.
    """
    for language in LANGUAGES:
        rows = Manual(languages=(language,)).rows("test", say=print)[:count]
        found = []
        for number, row in enumerate(rows):
            reference = " ".join(row["text"].split())
            words = list(reference) if language == "ja" else reference.split()
            drawn = Stream(0, ("agreement", language, number)).permutation(len(words))
            kept = [word for word, place in zip(words, drawn, strict=True) if place % 6]
            for place in range(0, len(kept) - 1, 9):
                kept[place : place + 2] = kept[place + 1], kept[place]
            found.append((("" if language == "ja" else " ").join(kept), reference))
        yield language, found


def command_line(folder: Path, rows: Sequence[tuple[str, str]], tokenize: str, words: int) -> dict[str, float]:
    """Ask sacreBLEU's own command for the scores of two files."""
    for name, column in (("said", 0), ("reference", 1)):
        text = "".join(f"{row[column]}\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    line = [sys.executable, "-m", "sacrebleu", str(folder / "reference"), "-i", str(folder / "said")]
    how = ["-m", "bleu", "chrf", "--tokenize", tokenize, "--chrf-word-order", str(words), "-w", str(DIGITS)]
    done = subprocess.run([*line, *how], capture_output=True, text=True, check=True)
    bleu, chrf = (one["score"] for one in json.loads(done.stdout))
    return {"BLEU": bleu, "chrF" + "+" * words: chrf}


def score(metric: Metric, rows: Sequence[Sequence[int]]) -> float:
    """Return a corpus score of what each segment adds to it."""
    return float(metric.value(np.sum(rows, axis=0, dtype=np.float64)))


def translations(folder: Path, count: int) -> bool:
    """Print the table of scores; return whether all are the same."""
    same = True
    print("\n| language | segments | metric | moesaic | sacreBLEU |\n|---|---:|---|---:|---:|")
    for language, rows in pairs(count):
        bleu = Bleu()
        made = {"BLEU": score(bleu.metric([language]), [bleu.statistics(*row, language) for row in rows])}
        said: dict[str, float] = {}
        for words in (0, 2):
            chrf = Chrf(words)
            made["chrF" + "+" * words] = score(chrf.metric(), [chrf.statistics(*row) for row in rows])
            said |= command_line(folder, rows, bleu.tokenizer(language), words)
        for name, value in made.items():
            own, other = (f"{one:.{DIGITS}f}" for one in (value, said[name]))
            same &= own == other
            print(f"| {language} | {len(rows)} | {name} | {own} | {other} |")
    return same


def perplexities(folder: Path, characters: int, window: int) -> bool:
    """Print the table of perplexities; return whether all are close."""
    rows = documents(characters)
    found = evaluate(MODEL, Perplexity(window=window, stride=window), rows, batch_size=BATCH)
    made, said = ours(found, rows), theirs(rows, folder, window)
    tokens = sum(int(row["tokens"]) for row in found.records)
    print(f"\n{MODEL}, {len(rows)} documents, {tokens:,} tokens, windows of {window:,}")
    print("\n| metric | moesaic | lm-eval | difference |\n|---|---:|---:|---:|")
    for name in METRICS:
        print(f"| {name} | {made[name]:.6f} | {said[name]:.6f} | {100 * (made[name] / said[name] - 1):+.5f} % |")
    return all(abs(made[name] / said[name] - 1) <= CLOSE for name in METRICS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=40_000, help="of the documents, two to four a token")
    parser.add_argument("--window", type=int, default=1024, help="tokens read at once")
    parser.add_argument("--segments", type=int, default=200, help="of each language")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        agree = [translations(Path(folder), args.segments), perplexities(Path(folder), args.characters, args.window)]
    if not all(agree):
        sys.exit("The tools do not agree.")


if __name__ == "__main__":
    main()
