"""The heads of classifiers that are trained on: kept, put in another order, or drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.integration import spliceable

from moesaic.training.tasks.heads import open_classifier

NAMES = ("cat", "dog", "fox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a classifier of three classes."""
    config = transformers.ViTConfig(**spliceable.IMAGE, num_labels=3)
    config.id2label, config.label2id = dict(enumerate(NAMES)), {name: n for n, name in enumerate(NAMES)}
    torch.manual_seed(0)
    spliceable.randomised(transformers.ViTForImageClassification(config)).save_pretrained(
        made := tmp_path_factory.mktemp("vit")
    )
    return made


def head(folder: Path, *names: str, seed: int = 0) -> dict[str, torch.Tensor]:
    model: Any = open_classifier(folder, names, seed)[0]
    assert list(model.config.id2label.values()) == list(names)
    return {name: tensor.detach().clone() for name, tensor in model.classifier.named_parameters()}


def test_each_class_keeps_its_row_in_any_order(folder: Path) -> None:
    before, turned = head(folder, *NAMES), head(folder, "fox", "cat", "dog")
    for name, rows in before.items():
        assert torch.equal(turned[name], rows[[2, 0, 1]])


def test_other_classes_of_the_same_number_get_a_head_of_their_own(folder: Path) -> None:
    before, other = head(folder, *NAMES), head(folder, "cat", "dog", "hen")
    assert not bool((other["weight"] == before["weight"]).any())
    assert bool((other["bias"] == 0).all())
    assert torch.equal(head(folder, "cat", "dog", "hen")["weight"], other["weight"])
    assert not torch.equal(head(folder, "cat", "dog", "hen", seed=1)["weight"], other["weight"])


def test_another_number_of_classes_gets_a_head_of_its_own(folder: Path) -> None:
    assert head(folder, "cat", "dog")["weight"].shape[0] == 2
