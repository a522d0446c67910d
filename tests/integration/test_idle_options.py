"""An option that would change nothing is refused, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.integration import pico, spliceable
from tests.unit.test_cli import said

import moesaic
from moesaic.calibrating import Reading
from moesaic.convert import Options
from moesaic.errors import PlanError
from moesaic.planning import planned
from moesaic.spec import MoESpec

UPCYCLE = ("--num-experts", "4", "--no-certify")
UNTIE = "--untie: the target must be a stock sparse class, whose output head is written. Got MoE layers inside"
ONE = "must have several towers to choose from. Got one, "
ALONE = "--max-tokens: it must go with --data, which it limits. Got it alone. Leave it out."
LEARN = "Got spri and router normal, which"
DATA = f"--data: a method or the certificate must read them. {LEARN} learn from none; no certificate. Leave it out."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pico.save_text(folder / "llama", "llama")
    pico.save_composite(folder / "llava", "llava-llama")
    spliceable.save(spliceable.make("gpt2", torch.float32), folder / "gpt2")
    return folder


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        ("gpt2", "--untie", 1, UNTIE),
        ("llama", "--untie --target splice", 1, UNTIE),
        ("gpt2", "--tower h", 1, f"--tower h: the model {ONE}transformer.h. Leave --tower out"),
        ("llama", "--tower model --target splice", 1, f"--tower model: the model {ONE}model.layers. Leave --tower"),
        ("llava", "--tower vision_tower --target mixtral", 1, "Got --target mixtral, whose language model alone"),
        ("llama", "--stats s", 1, f"--stats: the methods must learn from activations. {LEARN} do not. Leave"),
        ("llama", "--data d.txt", 1, DATA),
        ("llama", "--max-tokens 9", 2, ALONE),
        ("llama", "--max-tokens 9 --stats s --experts cluster_aware", 2, ALONE),
        ("llama", "--data d.txt --stats s --experts cluster_aware", 1, "Got --stats, which the methods learn from; no"),
    ],
)  # fmt: skip
def test_what_would_change_nothing_is_one_message(
    models: Path, tmp_path: Path, name: str, options: str, code: int, message: str
) -> None:
    got, out, err = said("upcycle", str(models / name), str(tmp_path / "moe"), *UPCYCLE, *options.split())
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_data_for_the_certificate_alone_are_not_limited(models: Path, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("one two three")
    line = ("upcycle", str(models / "llama"), str(tmp_path / "moe"), "--data", str(tmp_path / "d.txt"))
    assert "--max-tokens (reading): methods must calibrate on the data" in said(*line, "--max-tokens", "9")[2]


def test_data_that_no_certificate_can_read_are_for_methods(models: Path, tmp_path: Path) -> None:
    once = iter(["one two three"])
    with pytest.raises(PlanError, match="--data: a method or the certificate must read them"):
        moesaic.upcycle(models / "llama", tmp_path / "moe", MoESpec(4, 2), data=once)


def test_how_to_read_is_no_request_to_read(models: Path, tmp_path: Path) -> None:
    """So a study may say it of all its methods."""
    reading = Reading(max_tokens=9)
    assert moesaic.upcycle(models / "llama", tmp_path / "moe", MoESpec(4, 2), reading=reading, certify=False)


def test_a_tower_of_several_splices_and_an_untied_head_is_written(models: Path) -> None:
    vision = planned(str(models / "llava"), Options(MoESpec(4, 2), tower="vision_tower"))
    assert vision.target_type == "moesaic_llava"
    text = planned(str(models / "llama"), Options(MoESpec(4, 2), tower="model"))
    assert text.target_type == "moesaic_llama"  # which it would not be without a tower
    assert planned(str(models / "llama"), Options(MoESpec(4, 2), untie=True)).target_type == "qwen2_moe"
