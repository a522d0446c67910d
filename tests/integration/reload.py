"""Load written folders with whatever transformers this Python has, and hold their logits to `expected.pt` in each.

    python reload.py FOLDER...

Needs torch and transformers, not moesaic. Exits with 1 if any folder differs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers


def difference(folder: Path) -> str:
    """Return what is wrong with a folder; an empty string if nothing is."""
    class_name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    expected = torch.load(folder / "expected.pt")
    model, info = getattr(transformers, class_name).from_pretrained(folder, output_loading_info=True)
    state = model.state_dict()
    lost = [name for name in info["missing_keys"] if state[name].numel()]
    if lost or info["unexpected_keys"]:
        return f"missing {lost[:3]}, unexpected {info['unexpected_keys'][:3]}"
    with torch.no_grad():
        got = model.eval()(input_ids=expected["input_ids"]).logits
    want = expected["logits"]
    worst = ((got - want).abs().max() / want.abs().max()).item()
    return "" if worst < 1e-5 else f"logits differ by {worst:.1e} of the largest"


if __name__ == "__main__":
    faults = {path: fault for path in sys.argv[1:] if (fault := difference(Path(path)))}
    for path, fault in faults.items():
        print(f"{Path(path).name}: {fault}")
    print(f"transformers {transformers.__version__}: {len(sys.argv) - 1} folders, {len(faults)} wrong")
    sys.exit(bool(faults))
