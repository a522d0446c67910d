"""Load spliced folders by their own code with whatever transformers this Python has, and hold them to `io.pt`.

    python reload_spliced.py FOLDER...

Needs torch and transformers, not moesaic. Exits with 1 if any folder differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

NAMES = ("logits", "last_hidden_state", "image_embeds", "text_embeds", "pooler_output")


def difference(folder: Path) -> str:
    """Return what is wrong with a folder; an empty string if nothing is."""
    expected = torch.load(folder / "io.pt")
    auto = getattr(transformers, expected["auto"])
    model, info = auto.from_pretrained(folder, trust_remote_code=True, dtype="auto", output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        return f"missing {list(info['missing_keys'])[:3]}, unexpected {list(info['unexpected_keys'])[:3]}"
    with torch.no_grad():
        said = model.eval()(**expected["inputs"])
    got = torch.cat([said[name].flatten() for name in NAMES if said.get(name) is not None])
    worst = (got - expected["want"]).abs().max().item()
    # Another release computes some softmaxes and angles in float32, whatever the dtype of the model.
    return "" if worst < 1e-6 else f"outputs differ by {worst:.1e}"


if __name__ == "__main__":
    faults = {path: fault for path in sys.argv[1:] if (fault := difference(Path(path)))}
    for path, fault in faults.items():
        print(f"{Path(path).name}: {fault}")
    print(f"transformers {transformers.__version__}: {len(sys.argv) - 1} folders, {len(faults)} wrong")
    sys.exit(bool(faults))
