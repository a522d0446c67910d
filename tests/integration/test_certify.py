"""Certificates of whole conversions: by layer as at once, honest about what was changed, strict about promises."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.integration.pico import save_composite, save_text
from torch.testing import assert_close

import moesaic
import moesaic.certification as moesaic_certify
from moesaic.certification import by_layer, certify
from moesaic.certification.by_layer import load_by_layer
from moesaic.certification.capture import run
from moesaic.certification.source import Source
from moesaic.certification.text import Batch
from moesaic.checkpoints.dense import read_json
from moesaic.cli import run as cli
from moesaic.errors import CertificateError
from moesaic.experts.base import ExpertInit
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.experts.zero_routed import ZeroRouted
from moesaic.ffn import FFN
from moesaic.modeling.loading import load
from moesaic.plan import Rows
from moesaic.seeds import Stream
from moesaic.spec import Layers, LayerSpec, MoESpec
from moesaic.stats import UNSEEN, Seen

ALL, EVERY_OTHER = MoESpec(4, 2), MoESpec(4, 2, layers=Layers("every:2"))


@dataclass(frozen=True)
class Case:
    """A dense pico, how it is made sparse, and the class that it becomes."""

    dense: str
    target: str
    spec: MoESpec = ALL
    experts: type[ExpertInit] = SparseUpcycling


CASES = [
    Case("llama", "mixtral"),
    Case("llama3", "qwen2_moe", EVERY_OTHER, Spri),
    Case("mistral-window", "mixtral"),
    Case("qwen2-windows", "qwen2_moe", EVERY_OTHER, ZeroRouted),
    Case("gemma", "mixtral"),
    Case("granite", "granitemoe"),
    Case("olmo2", "flex_olmo"),
    Case("phi3", "mixtral"),
    Case("lfm2", "lfm2_moe", MoESpec(4, 2, layers=Layers("last:3"))),
    Case("qwen3_5", "qwen3_5_moe_text"),
]


def upcycled(folder: Path, case: Case) -> tuple[Path, Path]:
    save_text(folder / "dense", case.dense)
    made = moesaic.upcycle(
        folder / "dense", folder / "moe", case.spec, experts=case.experts(), target=case.target, certify=False
    )
    assert made.target == case.target
    return folder / "dense", made.folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return upcycled(tmp_path_factory.mktemp("llama"), CASES[0])


def tensors_of(folder: Path) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    for file in folder.glob("*.safetensors"):
        yield file, load_file(file)


def edit(folder: Path, out: Path, change: dict[str, Any]) -> Path:
    """Copy a model; tensors whose name ends with a key are replaced by what its function returns, or left out."""
    out.mkdir()
    for file in folder.glob("*.json"):
        (out / file.name).write_bytes(file.read_bytes())
    for file, tensors in tensors_of(folder):
        for name in list(tensors):
            for ending, function in change.items():
                if name.endswith(ending):
                    tensors[name] = function(tensors[name]).contiguous()
        save_file(tensors, out / file.name, metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dense}-{case.target}")
def test_layer_by_layer_gives_the_same_certificate(case: Case, tmp_path: Path) -> None:
    dense, moe = upcycled(tmp_path, case)
    whole = certify(dense, moe, max_tokens=64, streaming=False)
    assert certify(dense, moe, max_tokens=64, streaming=True) == whole
    assert [row["layer"] for row in whole.layers] == [0, 1, 2, 3]
    assert all(("router_entropy" in row) == ("diversity" in row) for row in whole.layers)
    assert whole.promised == (case.experts.name() != "spri")
    assert (whole.max_logit_diff < 1e-4) == whole.promised


@pytest.mark.parametrize(("name", "target"), [("llava-llama", "mixtral"), ("llava-next", "mixtral")])
def test_the_text_part_of_a_composite_is_certified(name: str, target: str, tmp_path: Path) -> None:
    save_composite(tmp_path / "dense", name)
    made = moesaic.upcycle(tmp_path / "dense", tmp_path / "moe", ALL, experts=SparseUpcycling())
    assert made.target == target
    assert made.certificate is not None
    assert made.certificate.max_logit_diff < 1e-4
    streamed = certify(tmp_path / "dense", tmp_path / "moe", streaming=True)
    assert streamed == made.certificate


def test_only_one_layer_is_there_at_a_time(llama: tuple[Path, Path]) -> None:
    source = Source.open(llama[1])
    model = load_by_layer(source)
    layers = model.get_decoder().layers
    held: list[int] = []

    def count(_layer: int, _x: torch.Tensor) -> None:
        held.append(sum(parameter.numel() for parameter in layers.parameters()))

    routers = dict.fromkeys(range(4), ("mlp.gate",))
    run(model, torch.tensor([[3, 4, 5]]), count, routers, count)
    one_layer = sum(info.count for name, info in source.checkpoint.infos.items() if ".layers.0." in name)
    assert held == [one_layer, 0] * 4  # at its router, and behind it


def test_layers_come_one_by_one_where_both_models_do_not_fit(
    llama: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, moe = map(Source.open, llama)
    needed = 4 * (dense.parameters + 2 * moe.parameters) / (1 - by_layer.SPARE)
    for spare, whole in ((1, True), (-1, False)):
        monkeypatch.setattr(by_layer, "free_memory", lambda spare=spare: needed + spare)
        assert by_layer.fits(dense, moe) == whole
    streamed: list[Source] = []
    monkeypatch.setattr(
        moesaic_certify, "load_by_layer", lambda source: streamed.append(source) or load_by_layer(source)
    )
    certify(*llama, max_tokens=32)
    assert [source.checkpoint.folder for source in streamed] == list(llama)


def test_what_cannot_be_cut_into_layers_says_so(llama: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, **_: Any) -> Any:
        return self.model.layers[1].self_attn.q_proj.weight

    monkeypatch.setattr(transformers.MixtralForCausalLM, "forward", forward)
    with pytest.raises(CertificateError, match="MixtralForCausalLM: the class must run with one layer in memory"):
        certify(*llama, max_tokens=32, streaming=True)


@pytest.mark.parametrize("name", ["llama", "qwen2-windows", "lfm2", "qwen3_5"])
def test_padding_on_the_right_changes_no_real_token(name: str, tmp_path: Path) -> None:
    model = save_text(tmp_path, name)
    batch = Batch([list(range(3, 21)), list(range(30, 37))])
    together = run(model, batch.ids(), lambda *_: None)
    for ids, logits_TV in zip(batch.sequences, together, strict=True):
        assert_close(logits_TV[: len(ids)], run(model, torch.tensor([ids]), lambda *_: None)[0], rtol=0, atol=1e-4)


def test_a_doubled_head_doubles_every_logit(llama: tuple[Path, Path], tmp_path: Path) -> None:
    dense, moe = llama
    doubled = edit(moe, tmp_path / "moe", {"lm_head.weight": lambda weight: 2 * weight})
    record = {**read_json(moe / "moesaic.json"), "preserves_function": False}
    found = certify(dense, doubled, record=record, max_tokens=64)
    assert found.max_logit_diff == found.max_logit > 1
    assert found.agreement == 1.0
    assert found.kl > 0.01
    assert [row["cosine"] for row in found.layers] == [1.0] * 4


def test_a_router_of_zeros_is_uniform_and_its_experts_identical(llama: tuple[Path, Path], tmp_path: Path) -> None:
    dense, moe = llama
    zeroed = edit(moe, tmp_path / "moe", {"block_sparse_moe.gate.weight": torch.zeros_like})
    for row in certify(dense, zeroed, max_tokens=64).layers:
        assert (row["router_entropy"], row["top1_probability"], row["diversity"]) == (1.0, 0.25, 0.0)
        assert_close(sum(row["load"]), 1.0, rtol=0, atol=1e-3)


def test_a_weight_out_of_place_is_refused(llama: tuple[Path, Path], tmp_path: Path) -> None:
    dense, moe = llama
    narrow = edit(
        moe, tmp_path / "moe", {"layers.2.block_sparse_moe.experts.1.w2.weight": lambda weight: weight[:, :8]}
    )
    for streaming in (False, True):
        with pytest.raises(CertificateError, match="MixtralForCausalLM"):
            certify(dense, narrow, max_tokens=32, streaming=streaming)


def test_nan_is_never_certified(llama: tuple[Path, Path], tmp_path: Path) -> None:
    dense, moe = llama
    broken = edit(moe, tmp_path / "moe", {"layers.3.post_attention_layernorm.weight": lambda w: w * torch.nan})
    with pytest.raises(CertificateError, match="The MoE model: logits must be finite"):
        certify(dense, broken, max_tokens=32)


@dataclass(frozen=True)
class Boastful(ExpertInit):
    """Claims to keep the function, and makes every expert a tenth too large."""

    def preserves_function(self, layer: LayerSpec) -> bool:
        return True

    def experts(self, dense: FFN, layer: LayerSpec, stream: Stream, seen: Seen = UNSEEN) -> Iterator[FFN]:
        for _ in range(layer.num_experts):
            yield dense.map(lambda name, tensor: 1.1 * tensor if name == "down" else tensor)


def test_a_broken_promise_publishes_nothing(llama: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="as this method promises"):
        moesaic.upcycle(llama[0], tmp_path / "out", ALL, experts=Boastful())
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / "config.json").exists()


def test_a_broken_promise_exits_with_1(
    llama: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Spri, "preserves_function", lambda *_: True)
    assert cli(["upcycle", str(llama[0]), str(tmp_path / "out"), "--num-experts", "4"]) == 1
    assert "spri: the converted model must compute what the dense one does" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "dtype"), [("gemma", None), ("llama", "BF16")], ids=["folded norms", "a cast that was asked for"]
)
def test_a_promise_is_kept_up_to_the_rounding_of_what_is_stored(name: str, dtype: str | None, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    model = save_text(dense, name)
    if dtype is None:
        for file in dense.iterdir():
            file.unlink()
        model.bfloat16().save_pretrained(dense)
    made = moesaic.upcycle(dense, tmp_path / "moe", ALL, experts=SparseUpcycling(), dtype=dtype)
    assert made.certificate is not None
    assert made.certificate.rounds_to == "BF16"
    assert 1e-4 < made.certificate.max_logit_diff / made.certificate.max_logit < 16 * 2**-8
    with pytest.raises(CertificateError, match="as this method promises"):
        moesaic.upcycle(dense, tmp_path / "boast", ALL, experts=Boastful(), dtype=dtype)


def test_copied_bytes_round_to_nothing(llama: tuple[Path, Path]) -> None:
    assert read_json(llama[1] / "moesaic.json")["rounds_to"] is None


def test_moesaic_json_holds_the_certificate_and_a_second_run_writes_the_same_bytes(
    llama: tuple[Path, Path], tmp_path: Path
) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        moesaic.upcycle(llama[0], out, ALL, experts=Spri())
    first, second = ((out / "moesaic.json").read_bytes() for out in outs)
    assert first == second
    found = json.loads(first)["certificate"]
    assert len(found["layers"]) == 4
    assert found["summary"]["function preserved"] == "not promised"
    assert {"kl", "agreement", "dense_loss", "moe_loss", "max_logit_diff"} <= found.keys()
    card = (outs[0] / "README.md").read_text()
    assert card == (outs[1] / "README.md").read_text()
    assert all(value.replace("|", "\\|") in card for value in found["summary"].values())


def test_the_command_line_certifies_layer_by_layer(
    llama: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for flags in ([], ["--layer-by-layer"]):
        assert cli(["certify", *map(str, llama), "--json", "--max-tokens", "64", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]
    assert found[0] == certify(*llama, max_tokens=64).to_json()


def test_tensors_of_every_dtype_are_read(llama: tuple[Path, Path]) -> None:
    source = Source.open(llama[0])
    name = "model.layers.1.mlp.down_proj.weight"
    info = source.checkpoint.infos[name]
    assert_close(source.read(name), source.checkpoint.read(Rows(name, 0, info.shape[0])))
    assert (source.prefix, source.num_layers, source.vocab_and_hidden) == ("model.", 4, (128, 64))


def test_a_class_that_is_not_installed_is_named(llama: tuple[Path, Path]) -> None:
    config = {**read_json(llama[0] / "config.json"), "architectures": ["NoSuchModel"]}
    with pytest.raises(CertificateError, match="NoSuchModel: the installed transformers must have this class"):
        load(llama[0], config, torch.float32)


def test_transformers_is_as_talkative_after_as_before(llama: tuple[Path, Path]) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    certify(*llama, max_tokens=32)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
