"""The held-out loss is the mean over the labels that count, however they fall into batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from moesaic.training.curve import Curve

BODY = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def causal() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**BODY))


def masked() -> Any:
    return transformers.BertForMaskedLM(transformers.BertConfig(**BODY))


def translating() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=32, **sizes))


@pytest.mark.parametrize("make", [causal, masked, translating])
def test_the_loss_is_that_of_all_labels_at_once(make: Any) -> None:
    """Also where a sequence begins with a label, and where a batch has none."""
    torch.manual_seed(0)
    model = make().double().eval()
    ids = torch.randint(3, 32, (4, 6))
    labels = ids.clone()
    labels[0, 2:] = -100
    labels[1] = -100
    whole = {"input_ids": ids, "labels": labels}
    parts = tuple({name: tensor[row : row + 1] for name, tensor in whole.items()} for row in range(4))
    with torch.no_grad():
        want = model(**whole).loss
    found = Curve(parts).measure(model)["eval/loss"]
    assert_close(found, float(want), rtol=0, atol=1e-6)  # some losses are computed in float32
