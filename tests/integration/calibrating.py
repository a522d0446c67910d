"""Pico models with processors, made by transformers; their FFNs; and statistics that remember what they are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
import torch
import transformers

from moesaic.calibration import Calibration, Origin, calibrate, open_data, open_readers, plan_batches
from moesaic.sites import Site
from moesaic.stats import Batch, Statistic, View
from moesaic.stats.base import Sums

VOCAB = 97
WORDS = ("the", "a", "of", "fox", "dog", "hen", "sun", "sea", "red", "big", "runs", "sees", "eats", "and", "then")


def text(words: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, words))


def texts(count: int = 24) -> list[str]:
    return [text(3 + (7 * number) % 23, number) for number in range(count)]


def save_tokenizer(folder: Path, *, bert: bool = False) -> None:
    ids = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    template = "<s> $A </s>" if bert else "<s> $A"
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def llama(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def bert(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    return folder


def vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def clip(folder: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": VOCAB, "max_position_embeddings": 24, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    edges = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **edges})
    )
    return folder


def whisper(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=VOCAB, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, num_mel_bins=8, max_source_positions=50,
        max_target_positions=32, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    return folder


def t5(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    return folder


def load(folder: Path) -> Any:
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder).eval()


def site(first: str, last: str) -> Site:
    return Site((first,), last, "plain", "gelu", 16, 24, first_bias=True, last_bias=True)


def sites(folder: Path) -> dict[int, Site]:
    """Return the FFNs of a pico model, by hand; of a gated one the gate alone, which is what is hooked."""
    blocks: Mapping[str, tuple[str, str]] = {
        "gate_proj": ("gate_proj", "down_proj"),
        "intermediate.dense": ("intermediate.dense", "output.dense"),
        "fc1": ("fc1", "fc2"),
        "wi_0": ("wi_0", "wo"),
    }
    found = []
    for path, _ in load(folder).named_modules():
        for end, (first, last) in blocks.items():
            if path.endswith("." + end):
                stem = path.removesuffix(end)
                found.append(site(stem + first, stem + last))
    return dict(enumerate(found))


@dataclass(frozen=True)
class Everything(Statistic):
    """Sums of whatever can be seen, beside a pilot's mean: enough to tell any two runs apart."""

    views: ClassVar[frozenset[View]] = frozenset({"input", "neurons"})
    pilot: int = 0

    def pilot_tokens(self, hidden: int) -> int:
        return self.pilot

    def fix(self, pilot: Batch, stream: Any) -> Sums:
        return {"mean_D": pilot.input_TD.double().mean(0), "count": torch.tensor(len(pilot))}

    def zeros(self, hidden: int, width: int, labels: int) -> Sums:
        return {
            "second_DD": torch.zeros(hidden, hidden, dtype=torch.float64),
            "neurons_F": torch.zeros(width, dtype=torch.float64),
            "label_L": torch.zeros(labels, dtype=torch.int64),
            "last_D": torch.zeros(hidden, dtype=torch.float64),
            "tokens": torch.zeros((), dtype=torch.int64),
        }

    def add(self, sums: Sums, fixed: Mapping[str, torch.Tensor], batch: Batch) -> None:
        x_TD = batch.input_TD.double()
        if fixed:
            x_TD = x_TD - fixed["mean_D"]
        sums["second_DD"] += x_TD.T @ x_TD
        assert batch.neurons_TF is not None
        sums["neurons_F"] += batch.neurons_TF.double().abs().sum(0)
        known = batch.label_T[batch.label_T >= 0]
        sums["label_L"].index_add_(0, known, torch.ones_like(known))
        sums["last_D"] += batch.input_TD[batch.last_T].double().sum(0)
        sums["tokens"] += len(batch)

    def finish(self, sums: Sums, fixed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**sums, **fixed}


MODELS: Mapping[str, Callable[[Path], Path]] = {
    "llama": llama,
    "bert": bert,
    "vit": vit,
    "clip": clip,
    "whisper": whisper,
    "t5": t5,
}


def picture(seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def recording(seconds: float) -> dict[str, Any]:
    wave = np.sin(np.arange(int(16000 * seconds)) / 9).astype(np.float32)
    return {"array": wave, "sampling_rate": 16000}


def data_for(name: str) -> list[Any]:
    """Return a few items that a pico model can read, some of them labelled."""
    if name == "vit":
        return [{"image": picture(seed), "label": "ab"[seed % 2]} for seed in range(7)]
    if name == "clip":
        return [*texts(5), *({"image": picture(seed), "text": text(4, seed)} for seed in range(7))]
    if name == "whisper":
        return [{"audio": recording(seconds), "text": text(4, 0)} for seconds in (0.3, 0.7, 1.0, 2.5)]
    return [{"text": one, "label": "abc"[place % 3]} for place, one in enumerate(texts())]


def calibration(
    folder: Path, name: str, data: Any = None, *, batch_tokens: int = 100, seed: int = 0, **options: Any
) -> Calibration:
    """Return what `Everything` saw of a pico model's FFNs, with a pilot and without."""
    model, found = load(folder), sites(folder)
    readers = open_readers(folder, model)
    items = open_data(data_for(name) if data is None else data, readers)
    batches = plan_batches(items, readers, batch_tokens=batch_tokens, seed=seed)
    statistics = {number: [Everything(), Everything(pilot=60)] for number in found}
    return calibrate(model, found, statistics, batches, labels=items.labels, origin=Origin(seed=seed), **options)
