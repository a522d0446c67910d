"""Calibration of whole pico models: what is seen is what the model computes, however it is run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from tests.integration import calibrating as pico
from torch.testing import assert_close

from moesaic.calibration import Calibration, Keeping, calibrate, open_data, open_readers, plan_batches
from moesaic.calibration.data import Item
from moesaic.errors import CalibrationError
from moesaic.stats import Batch, Statistic, View

# Sums in float64 of float32 values that a batch of another shape may round differently: a few units of 6e-8 each.
ROUNDED = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in pico.MODELS.items():
        make(folder / name)
    return folder


def same(found: Calibration, wanted: Calibration, **tolerance: float) -> None:
    assert found.record.counted == wanted.record.counted
    assert found.tensors.keys() == wanted.tensors.keys()
    for name in wanted.tensors:
        assert_close(
            found.tensors[name], wanted.tensors[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def hooked(model: Any, site: Any, runs: Iterator[dict[str, Any]], keep: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Return the sums of `Everything` from runs of one sequence each, none of them padded, by hooks of our own."""
    modules, seen = dict(model.named_modules()), {}
    for name, path in (("x", site.first[0]), ("h", site.last)):
        modules[path].register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0]}))
    second, neurons, tokens = 0, 0, 0
    for inputs in runs:
        with torch.no_grad():
            model(**inputs)
        x_TD, h_TF = (seen[name].flatten(0, -2)[keep].double() for name in ("x", "h"))
        second, neurons, tokens = second + x_TD.T @ x_TD, neurons + h_TF.abs().sum(0), tokens + len(x_TD)
    return {"second_DD": second, "neurons_F": neurons, "tokens": torch.tensor(tokens)}


def text_runs(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for item in pico.data_for(name):
        ids = tokenizer(item["text"], return_tensors="pt")["input_ids"]
        shifted = torch.cat([torch.zeros(1, 1, dtype=torch.int64), ids[:, :-1]], 1)
        yield {"input_ids": ids, **({"decoder_input_ids": shifted} if name == "t5" else {})}


def counting_from_the_pad(folder: Path, name: str, pad: int) -> Any:
    """Save a model of 34 positions whose tokenizer states no length, and return it."""
    words = ["<s>", "</s>", *pico.WORDS]
    words.insert(pad, "<pad>")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="the")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(word, words.index(word)) for word in ("<s>", "</s>")]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>").save_pretrained(folder)
    config = transformers.AutoConfig.for_model(
        name, vocab_size=pico.VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=34, pad_token_id=pad,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return transformers.AutoModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    ("name", "pad", "holds"),
    [("roberta", 1, 32), ("roberta", 0, 33), ("xlm-roberta", 1, 32), ("mpnet", 1, 32), ("ibert", 1, 32),
     ("bert", 1, 34)],
)  # fmt: skip
def test_a_window_is_what_the_positions_hold(name: str, pad: int, holds: int, tmp_path: Path) -> None:
    model = counting_from_the_pad(tmp_path, name, pad)
    reader: Any = open_readers(tmp_path, model)["text"]
    assert reader.window == holds
    first, *_ = reader.examples(Item("a", None, text=pico.text(100, 0)))
    assert first.tokens == holds
    longer = replace(first, ids=(*first.ids, 5), tokens=holds + 1)
    with torch.no_grad():
        model(**reader.feed([first]).inputs)
        with pytest.raises((IndexError, RuntimeError)):  # one more has no position
            model(**reader.feed([longer]).inputs)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_texts_are_seen_as_the_model_sees_them_without_pads(models: Path, name: str) -> None:
    found = pico.calibration(models / name, name)
    for number, site in pico.sites(models / name).items():
        wanted = hooked(pico.load(models / name), site, text_runs(models / name, name))
        for key, value in wanted.items():
            assert_close(found.tensors[f"{number}/0/sum/{key}"], value, **ROUNDED)


def test_images_are_seen_as_the_model_sees_them(models: Path) -> None:
    folder = models / "vit"
    found = pico.calibration(folder, "vit")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for number, site in pico.sites(folder).items():
        runs = (dict(processor(images=[item["image"]], return_tensors="pt")) for item in pico.data_for("vit"))
        for key, value in hooked(pico.load(folder), site, runs).items():
            assert_close(found.tensors[f"{number}/0/sum/{key}"], value, **ROUNDED)
        assert found.tensors[f"{number}/0/sum/label_L"].tolist() == [4 * 5, 3 * 5]


def test_frames_behind_a_recording_are_left_out(models: Path) -> None:
    """0.3 s are 15 of the encoder's 50 frames; the decoder reads the transcript's five tokens but for the last."""
    folder = models / "whisper"
    item = {"audio": pico.recording(0.3), "text": "the fox runs"}
    found = pico.calibration(folder, "whisper", [item])
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    features = extractor([item["audio"]["array"]], sampling_rate=16000, return_tensors="pt")["input_features"]
    run = {"input_features": features, "decoder_input_ids": torch.tensor([[1, 4, 7, 14]])}
    for number, site in pico.sites(folder).items():
        keep = slice(15) if "encoder" in site.last else slice(None)
        for key, value in hooked(pico.load(folder), site, iter([run]), keep).items():
            assert_close(found.tensors[f"{number}/0/sum/{key}"], value, **ROUNDED)


def test_towers_of_a_dual_encoder_run_alone(models: Path) -> None:
    pictures = [{"image": pico.picture(seed)} for seed in range(3)]
    found = pico.calibration(models / "clip", "clip", pictures, whole=False)
    assert {site.tower for site in found.sites} == {"vision_model.encoder.layers"}
    with pytest.raises(
        CalibrationError, match=r"every chosen FFN must see data(?s:.)*text_model.encoder.layers.0.mlp.fc2"
    ):
        pico.calibration(models / "clip", "clip", pictures)


@pytest.mark.parametrize("name", pico.MODELS)
def test_sums_do_not_depend_on_order_or_batches(models: Path, name: str) -> None:
    wanted = pico.calibration(models / name, name)
    for found in (
        pico.calibration(models / name, name, batch_tokens=40),
        pico.calibration(models / name, name, pico.data_for(name)[::-1], seed=3),
    ):
        for key, value in wanted.tensors.items():
            if "/0/" in key:  # the pilot is another
                assert_close(found.tensors[key], value, **ROUNDED)


def test_two_processes_count_what_one_does(models: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("calibration_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, str(models), str(tmp_path)],
        check=False,
        cwd=root,
        env=_env(root),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in pico.MODELS:
        two = Calibration.load(tmp_path / f"{name}.safetensors")
        # The passes are the same to the bit; the float64 sums of two halves round differently from one sum.
        same(two, pico.calibration(models / name, name), atol=1e-12, rtol=1e-12)
        assert two.record.sha256 == pico.calibration(models / name, name).record.sha256


def _env(root: Path) -> dict[str, str]:
    import os  # noqa: PLC0415

    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("after", [2, 5, 9])
def test_a_killed_run_continues_to_the_same_bits(models: Path, tmp_path: Path, after: int) -> None:
    folder, done = models / "llama", []

    def kill(*_: object) -> None:
        done.append(1)
        if len(done) == after:
            raise Killed

    keeping = Keeping(tmp_path / "out.partial", every=2)
    with pytest.raises(Killed):
        pico.calibration(folder, "llama", batch_tokens=40, keeping=keeping, progress=kill)
    ran: list[int] = []
    found = pico.calibration(
        folder, "llama", batch_tokens=40, keeping=replace(keeping, resume=True), progress=lambda *_: ran.append(1)
    )
    wanted = pico.calibration(folder, "llama", batch_tokens=40)
    same(found, wanted, atol=0, rtol=0)  # the same sums in the same order
    assert found.record == wanted.record
    assert len(ran) == wanted.record.batches - (after - 1) // 2 * 2 * (after > 4)  # the pilot of 60 is full after 2


def test_resume_refuses_another_run(models: Path, tmp_path: Path) -> None:
    keeping = Keeping(tmp_path / "kept", every=1)
    again = replace(keeping, resume=True)
    pico.calibration(models / "llama", "llama", keeping=keeping)
    with pytest.raises(CalibrationError, match="--resume must continue the same calibration"):
        pico.calibration(models / "llama", "llama", seed=1, keeping=again)
    for data in (pico.data_for("llama")[:4], [*pico.data_for("llama")[:-1], "the sun"]):
        items = [{"text": "the", "label": label} for label in "abc"] + data  # the same labels
        with pytest.raises(CalibrationError, match="--resume must continue over the same data"):
            pico.calibration(models / "llama", "llama", items, keeping=again)
    pico.calibration(models / "llama", "llama", seed=1, keeping=keeping)  # starts afresh


@dataclass(frozen=True)
class Slopes(Statistic):
    """Sums of gradients and of embeddings."""

    views: ClassVar[frozenset[View]] = frozenset({"input", "neurons", "gradient", "embedding"})

    def zeros(self, hidden: int, width: int, labels: int) -> dict[str, torch.Tensor]:
        return {
            "effect_F": torch.zeros(width, dtype=torch.float64),
            "cross_DD": torch.zeros(hidden, hidden, dtype=torch.float64),
        }

    def add(self, sums: Any, fixed: Any, batch: Batch) -> None:
        assert batch.neurons_TF is not None
        assert batch.gradient_TF is not None
        assert batch.embedding_TD is not None
        sums["effect_F"] += (batch.neurons_TF * batch.gradient_TF).double().abs().sum(0)
        sums["cross_DD"] += (batch.embedding_TD.T @ batch.input_TD).double()

    def finish(self, sums: Any, fixed: Any) -> dict[str, torch.Tensor]:
        return dict(sums)


def slopes(folder: Path, name: str, batch_tokens: int = 100, **options: Any) -> Calibration:
    model = pico.load(folder)
    found = {number: site for number, site in pico.sites(folder).items() if "encoder.block" not in site.last}
    readers = open_readers(folder, model)
    batches = plan_batches(open_data(pico.data_for(name), readers), readers, batch_tokens=batch_tokens)
    return calibrate(model, found, {number: [Slopes()] for number in found}, batches, **options)


def test_gradients_are_those_of_the_sum_of_the_losses(models: Path) -> None:
    """The model's own loss is a mean over a batch, which would weigh tokens by the company they come in."""
    folder = models / "llama"
    found, other = (slopes(folder, "llama", tokens) for tokens in (100, 30))
    model, seen = pico.load(folder), {}
    site = pico.sites(folder)[0]
    module = model.get_submodule(site.last)
    module.register_forward_pre_hook(lambda _m, args: seen.update(h=args[0]) or args[0].retain_grad())
    want = torch.zeros(site.width, dtype=torch.float64)
    for run in text_runs(folder, "llama"):
        logits = model(**run).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], run["input_ids"][0, 1:], reduction="sum").backward()
        want += (seen["h"].grad * seen["h"]).detach()[0].double().abs().sum(0)
    # float32 through two layers and back
    assert_close(found.tensors["0/0/sum/effect_F"], want, atol=1e-5, rtol=1e-4)
    for name, tensor in found.tensors.items():
        assert_close(other.tensors[name], tensor, atol=1e-5, rtol=1e-4)
    assert all(weight.requires_grad for weight in model.parameters())


def test_embeddings_are_those_of_the_same_tokens(models: Path) -> None:
    folder = models / "llama"
    found, model = slopes(folder, "llama"), pico.load(folder)
    seen: dict[str, torch.Tensor] = {}
    model.get_submodule(pico.sites(folder)[1].first[0]).register_forward_pre_hook(
        lambda _m, args: seen.update(x=args[0])
    )
    want = 0
    for run in text_runs(folder, "llama"):
        with torch.no_grad():
            model(**run)
            want = want + (model.get_input_embeddings()(run["input_ids"])[0].T @ seen["x"][0]).double()
    assert_close(found.tensors["1/0/sum/cross_DD"], want, **ROUNDED)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit", "gradients must come from a language model's loss on text. The data are of kind image"),
        ("bert", "gradients must come from a language model's loss|the model must run on the data"),
    ],
)
def test_gradients_need_a_loss(models: Path, name: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        slopes(models / name, name)


def test_a_layer_that_runs_twice_counts_twice(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=pico.VOCAB, embedding_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    pico.save_tokenizer(tmp_path, bert=True)
    stem = "encoder.albert_layer_groups.0.albert_layers.0."
    model, site = pico.load(tmp_path), pico.site(stem + "ffn", stem + "ffn_output")
    readers = open_readers(tmp_path, model)
    batches = plan_batches(open_data(["the fox runs"], readers), readers)
    found = calibrate(model, {0: site}, {0: [pico.Everything()]}, batches)
    assert found.record.counted[0].tokens == 3 * 5


def test_autocast_rounds_to_bfloat16_and_no_more(models: Path) -> None:
    wanted = pico.calibration(models / "llama", "llama").tensors["1/0/sum/neurons_F"]
    found = pico.calibration(models / "llama", "llama", autocast=torch.bfloat16).tensors["1/0/sum/neurons_F"]
    assert not torch.equal(found, wanted)
    assert_close(found, wanted, atol=0, rtol=2e-2)  # bfloat16 has 8 bits; sums of hundreds of values average it out


def test_unusable_folders_and_sites_are_refused(models: Path, tmp_path: Path) -> None:
    model = pico.load(models / "llama")
    with pytest.raises(CalibrationError, match=r"the model must have a processor for text. Got none of tokenizer.json"):
        open_readers(tmp_path, model)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(CalibrationError, match="its tokenizer must load"):
        open_readers(tmp_path, model)
    readers = open_readers(models / "llama", model)
    batches = list(plan_batches(open_data(["the fox"], readers), readers))
    lost = pico.site("model.layers.7.mlp.gate_proj", "model.layers.7.mlp.down_proj")
    with pytest.raises(CalibrationError, match=r"the model must have the module model.layers.7.mlp.down_proj"):
        calibrate(model, {0: lost}, {0: [pico.Everything()]}, batches)
    with pytest.raises(CalibrationError, match="a statistic must be asked for"):
        calibrate(model, pico.sites(models / "llama"), {}, batches)
    small = replace(batches[0].examples[0], ids=(1, 5000))
    with pytest.raises(
        CalibrationError, match=r"LlamaForCausalLM: the model must run on the data. It does not: IndexError"
    ):
        calibrate(
            model, pico.sites(models / "llama"), {0: [pico.Everything()]}, [replace(batches[0], examples=(small,))]
        )


def test_empty_data_are_refused(models: Path, tmp_path: Path) -> None:
    for data in ([], ["", " \n"]):
        with pytest.raises(CalibrationError, match=r"list: the data must hold text for the model to read. Got none"):
            pico.calibration(models / "llama", "llama", data)
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(CalibrationError, match=r"blank.txt: the data must hold text .* Got none"):
        pico.calibration(models / "llama", "llama", tmp_path / "blank.txt")


def test_results_come_back_from_a_file(models: Path, tmp_path: Path) -> None:
    found = pico.calibration(models / "bert", "bert")
    found.save(tmp_path / "stats.safetensors")
    again = Calibration.load(tmp_path / "stats.safetensors")
    same(again, found, atol=0, rtol=0)
    assert again.record == found.record
    assert load_file(tmp_path / "stats.safetensors").keys() == found.tensors.keys()
