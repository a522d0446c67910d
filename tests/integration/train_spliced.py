"""Train spliced folders with whatever transformers this Python has, loaded by moesaic and by their own code.

    PYTHONPATH=src python train_spliced.py FOLDER...

Each is trained for a step, saved and loaded again. Exits with 1, and says why, if any can't be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

import moesaic
from moesaic.errors import ObservationError
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.loss_free_bias import LossFreeBias
from moesaic.observing import moe_blocks
from moesaic.training import RouterObjective
from moesaic.training.balancing import choice_bias


def train(model: Any, folder: Path) -> list[torch.Tensor]:
    """Train for a step, save, and return the routers' gradients and biases."""
    objective = RouterObjective([LoadBalancing(weight=1.0), LossFreeBias(rate=0.5)]).attach(model.train())
    torch.manual_seed(0)  # of dropout
    ids = torch.arange(12).reshape(2, 6) % model.config.vocab_size
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert len(objective.log()) == len(moe_blocks(model))
    objective.detach()
    model.save_pretrained(folder)
    return [tensor for block in moe_blocks(model) for tensor in (block.router_weight.grad, choice_bias(block))]


def check(folder: Path) -> None:
    """Train a folder in both ways."""
    auto = transformers.AutoModelForCausalLM
    own = auto.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    found = [train(model, folder / name) for name, model in (("one", moesaic.load(folder)), ("two", own))]
    torch.testing.assert_close(*found, rtol=0, atol=0)  # the same code
    assert all(tensor.abs().max() > 0 for tensor in found[0])
    biases = [choice_bias(block) for block in moe_blocks(moesaic.load(folder / "one"))]
    torch.testing.assert_close(biases, found[0][1::2], rtol=0, atol=0)


def refusal(class_name: str) -> str:
    """Return why a stock class is not observed."""
    cls = getattr(transformers, class_name)
    sizes = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "head_dim": 16}
    config = cls.config_class(vocab_size=32, hidden_size=32, intermediate_size=16, num_hidden_layers=1, **sizes)
    try:
        moe_blocks(cls(config))
    except ObservationError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    for path in sys.argv[1:]:
        check(Path(path))
    if transformers.__version__.startswith("4."):  # whose stock classes call routers and experts in ways of their own
        for name in ("MixtralForCausalLM", "GptOssForCausalLM"):
            assert "load the model with transformers 5" in refusal(name)
