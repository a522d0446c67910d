"""Any model becomes a MoE in its own class: exact where experts are equal, loaded with and without moesaic."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.integration import spliceable
from tests.integration.calibrating import clip
from torch.testing import assert_close

import moesaic
from moesaic.certification import SplicedCertificate
from moesaic.checkpoints.dense import DenseCheckpoint, read_json
from moesaic.cli import run
from moesaic.convert import Options, Spliced, Writing, convert, prepare
from moesaic.errors import ArchitectureError, CertificateError, CheckpointError, PlanError
from moesaic.experts.base import ExpertInit
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.experts.virtual_group import VirtualGroup
from moesaic.modeling.dense_ffn import activation, dense_ffn
from moesaic.modeling.sections import code_files
from moesaic.modeling.spliced import MoELayer
from moesaic.moe import moe as oracle
from moesaic.routers.normal import Normal
from moesaic.seeds import Stream
from moesaic.spec import Layers, MoESpec

TF4 = os.environ.get("MOESAIC_TRANSFORMERS4_PYTHON", "")
needs_4 = pytest.mark.skipif(not TF4, reason="MOESAIC_TRANSFORMERS4_PYTHON names no Python with transformers 4.57")
ROOT = Path(__file__).parents[2]
every_model = pytest.mark.parametrize("name", spliceable.MODELS)
EXACT: dict[str, float] = {"rtol": 0, "atol": 1e-10}
"""float64: what a handful of sums can round."""


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, transformers.PreTrainedModel]]:
    """Return a maker of float64 models, each made once: (folder, model)."""

    @cache
    def make(name: str) -> tuple[Path, transformers.PreTrainedModel]:
        model = spliceable.make(name)
        return spliceable.save(model, tmp_path_factory.mktemp(name) / "dense"), model

    return make


def upcycle(source: Path, out: Path, experts: ExpertInit | None = None, **options: Any) -> Path:
    spec = options.pop("spec", MoESpec(4, 2))
    chosen = Options(spec, experts or SparseUpcycling(), Normal(std=0.5), target="splice", **options)
    convert(DenseCheckpoint.open(source), out, chosen)
    return out


def moe_layers(model: torch.nn.Module) -> list[MoELayer]:
    return [module for module in model.modules() if isinstance(module, MoELayer)]


@every_model
def test_equal_experts_compute_the_dense_output(
    name: str, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, model = dense(name)
    sparse = moesaic.load(upcycle(folder, tmp_path / "moe"))
    assert len(moe_layers(sparse)) == len(read_json(tmp_path / "moe" / "config.json")["moesaic"]["sites"])
    want = spliceable.output(model)
    # Gemma's norms compute in float32 whatever the dtype, and turn the last bit of float64 into one of these.
    bound = {"rtol": 0, "atol": 1e-5 * float(want.abs().max())} if name == "gemma2" else EXACT
    assert_close(spliceable.output(sparse), want, **bound)


@pytest.mark.parametrize("name", ["clip-vision", "whisper", "t5-gated", "gpt2", "modernbert"])
@pytest.mark.parametrize("experts", [Spri(noise=0), VirtualGroup(shards=2)], ids=lambda e: e.name())
def test_experts_stand_where_the_oracle_has_them(
    name: str, experts: ExpertInit, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]
) -> None:
    """Every layer computes what the reference does from the same experts: shared expert, biases and halves included."""
    folder, model = dense(name)
    router = {"spri": None, "virtual_group": None}[experts.name()]
    chosen = Options(MoESpec(4, 2), experts, router, target="splice")
    conversion = convert(DenseCheckpoint.open(folder), tmp_path / "moe", chosen)
    assert isinstance(conversion, Spliced)
    sparse = moesaic.load(tmp_path / "moe")
    for (number, spec), layer in zip(conversion.layers.items(), moe_layers(sparse), strict=True):
        site = conversion.sites[number]
        ffn, act = dense_ffn(model, site), activation(site)
        x_TD = torch.randn(9, site.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        stream = Stream(0).child(experts.name(), number)
        want = oracle(
            x_TD, layer.router.weight, list(experts.experts(ffn, spec, stream)), act, top_k=2,
            shared=ffn if spec.shared_expert else None, shares=experts.shares(spec),
        )  # fmt: skip
        assert_close(layer.compute(x_TD).detach(), want.detach(), rtol=0, atol=1e-6)  # experts may be float32


@pytest.mark.parametrize("name", ["bert", "vit", "whisper", "t5-gated", "clip-b32"])
def test_transformers_alone_loads_the_folder_with_its_code(
    name: str, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, model = dense(name)
    out = upcycle(folder, tmp_path / "moe")
    auto = (
        next(k for k in read_json(out / "config.json")["auto_map"] if k not in ("AutoConfig", "AutoModel"))
        if (name in ("bert", "vit", "whisper", "t5-gated"))
        else "AutoModel"
    )
    loaded = getattr(transformers, auto).from_pretrained(out, trust_remote_code=True, dtype="auto").eval()
    assert type(loaded).__module__.startswith("transformers_modules")
    assert_close(spliceable.output(loaded), spliceable.output(model), **EXACT)
    loaded.save_pretrained(tmp_path / "again")
    again = getattr(transformers, auto).from_pretrained(tmp_path / "again", trust_remote_code=True, dtype="auto")
    assert_close(spliceable.output(again.eval()), spliceable.output(model), **EXACT)
    with pytest.raises((ValueError, OSError)):  # never a stock class with FFNs drawn at random
        getattr(transformers, auto).from_pretrained(out, trust_remote_code=False)


@needs_4
def test_transformers_4_loads_the_folders(tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]) -> None:
    names = ["bert", "vit", "clip-vision", "siglip", "dinov2", "whisper", "m2m100", "t5", "gpt2", "modernbert"]
    for name in names:
        folder, model = dense(name)
        out = upcycle(folder, tmp_path / name)
        auto_map = read_json(out / "config.json")["auto_map"]
        base = spliceable.MODELS[name][0]
        auto = next(auto for auto, cls in auto_map.items() if cls == f"spliced.MoE{base}")
        torch.save({"inputs": spliceable.inputs(model), "want": spliceable.output(model), "auto": auto}, out / "io.pt")
    script = Path(__file__).with_name("reload_spliced.py")
    biased = biased_gpt2(tmp_path / "gpt2", tmp_path / "biased")
    command = [TF4, script, *(tmp_path / name for name in names), biased]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def biased_gpt2(unbiased: Path, to: Path) -> Path:
    """Write a folder whose layers choose by a bias, as training leaves it, and what it computes."""
    model = moesaic.load(unbiased)
    expected = torch.load(unbiased / "io.pt")
    for layer in moe_layers(model):
        layer.add_choice_bias()
        assert layer.choice_bias is not None
        layer.choice_bias.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0]))  # the last two experts, whatever the token
        layer.experts.down_proj.data.mul_(torch.arange(1.0, 5.0)[:, None, None])
    want = spliceable.output(model)
    assert (want - expected["want"]).abs().max() > 1e-2  # else the bias could be lost unseen
    model.save_pretrained(to)
    for file in code_files():
        shutil.copyfile(file, to / file.name)
    torch.save({**expected, "want": want}, to / "io.pt")
    return to


@pytest.mark.parametrize("python", [sys.executable, pytest.param(TF4, marks=needs_4)], ids=["here", "transformers-4"])
def test_a_spliced_model_trains_with_either_transformers(
    python: str, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, _ = dense("gpt2")
    out = upcycle(folder, tmp_path / "moe")
    script = Path(__file__).with_name("train_spliced.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, script, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_towers_and_layers_choose(tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]) -> None:
    folder, model = dense("clip-b32")
    out = upcycle(folder, tmp_path / "moe", spec=MoESpec(4, 2, layers=Layers("last:1")), tower="vision")
    sites = read_json(out / "config.json")["moesaic"]["sites"]
    assert [site["last"] for site in sites] == ["vision_model.encoder.layers.1.mlp.fc2"]
    assert_close(spliceable.output(moesaic.load(out)), spliceable.output(model), **EXACT)


def test_a_llava_has_a_stock_text_model_and_a_spliced_vision_tower(tmp_path: Path) -> None:
    text = {**spliceable.TEXT, "model_type": "llama", "num_key_value_heads": 2}
    vision = {**spliceable.IMAGE, "model_type": "clip_vision_model"}
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=63)
    torch.manual_seed(0)
    model = spliceable.randomised(transformers.LlavaForConditionalGeneration(config).eval())
    folder = spliceable.save(model, tmp_path / "dense")
    convert(DenseCheckpoint.open(folder), tmp_path / "text", Options(MoESpec(4, 2), SparseUpcycling()))
    assert read_json(tmp_path / "text" / "config.json")["text_config"]["model_type"] == "mixtral"
    out = upcycle(tmp_path / "text", tmp_path / "both")
    ids = torch.randint(3, 60, (1, 24), generator=torch.Generator().manual_seed(4))
    ids[0, 2:18] = 63
    given = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)}
    both = moesaic.load(out)
    assert len(moe_layers(both)) == 2
    want = spliceable.output(model, given)  # float32: the stock text model's grouped kernel knows no float64
    assert_close(spliceable.output(both, given), want, rtol=0, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("implementation", ["whole", "copied"])
def test_the_same_bytes_whatever_the_threads(
    implementation: str, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, _ = dense("whisper")
    experts: ExpertInit = Spri() if implementation == "whole" else SparseUpcycling()
    for workers in (1, 3):
        options = Options(MoESpec(4, 2), experts, target="splice")
        convert(DenseCheckpoint.open(folder), tmp_path / str(workers), options, Writing(workers=workers))
    first, second = (sorted((tmp_path / n).glob("*.safetensors")) for n in ("1", "3"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


class TestTheModuleIsAnOrdinaryOne:
    """compile, state_dict, to, autocast, gradient checkpointing, deepcopy, LoRA on the experts."""

    @pytest.fixture
    def sparse(self, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]) -> transformers.PreTrainedModel:
        return moesaic.load(upcycle(dense("bert")[0], tmp_path / "moe", Spri()), dtype=torch.float32)

    def test_deepcopy_state_dict_and_to(self, sparse: Any) -> None:
        copied = copy.deepcopy(sparse).to(torch.float64)
        fresh = type(sparse)(sparse.config).double()
        fresh.load_state_dict(copied.state_dict())
        given = spliceable.inputs(sparse)
        assert_close(spliceable.output(fresh.eval(), given), spliceable.output(copied, given), rtol=0, atol=0)
        assert_close(spliceable.output(copied, given).float(), spliceable.output(sparse, given), rtol=1e-4, atol=1e-5)

    def test_gradient_checkpointing_gives_the_same_gradients(self, sparse: Any) -> None:
        def gradients(model: Any) -> dict[str, torch.Tensor]:
            model.zero_grad()
            model.train()
            ids = spliceable.inputs(model)["input_ids"]
            torch.manual_seed(0)
            model(input_ids=ids, labels=ids).loss.backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        for module in sparse.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # so that both passes see the same network
        plain = gradients(sparse)
        sparse.gradient_checkpointing_enable()
        again = gradients(sparse)
        assert any("experts.down_proj" in name for name in plain)
        assert any("router.weight" in name for name in plain)
        assert plain.keys() == again.keys()
        for name, gradient in plain.items():
            assert_close(again[name], gradient, rtol=1e-5, atol=1e-7)  # the same sums, recomputed

    def test_autocast_stays_near_float32(self, sparse: Any) -> None:
        want = spliceable.output(sparse)
        with torch.autocast("cpu", torch.bfloat16):
            got = spliceable.output(sparse)
        assert_close(got.float(), want, rtol=0.1, atol=0.1 * float(want.abs().max()))  # bfloat16 has three digits

    def test_compiled_it_computes_the_same(self, sparse: Any) -> None:
        given = spliceable.inputs(sparse)
        want = spliceable.output(sparse, given)
        compiled = torch.compile(sparse, backend="aot_eager")
        assert_close(spliceable.output(compiled, given), want, rtol=1e-5, atol=1e-5)  # float32, other order of sums

    def test_lora_on_the_experts_trains_merges_and_saves(self, sparse: Any, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        targets = ["experts.up_proj", "experts.down_proj"]
        model = peft.get_peft_model(sparse, peft.LoraConfig(r=2, target_modules=[], target_parameters=targets))
        ids = spliceable.inputs(sparse)["input_ids"]
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        assert losses[-1] < losses[0]
        merged = model.merge_and_unload()
        want = spliceable.output(merged.eval())
        merged.save_pretrained(tmp_path / "merged")
        assert_close(spliceable.output(moesaic.load(tmp_path / "merged")), want, rtol=0, atol=1e-6)  # stored float32


def test_a_certificate_reaches_every_moe_layer_or_is_refused(tmp_path: Path) -> None:
    """Text alone says nothing of a vision tower, whose broken experts it would pass."""
    folder = clip(tmp_path / "clip")
    spec = MoESpec(4, 2)
    made = moesaic.upcycle(folder, tmp_path / "moe", spec, experts=SparseUpcycling(), tower="vision")
    assert isinstance(made.certificate, SplicedCertificate)
    assert made.certificate.output not in ("text_embeds", "logits")
    assert all(row["load_cv"] >= 0 for row in made.certificate.layers)
    with pytest.raises(
        CertificateError, match=r"must reach every MoE layer(.|\n)*vision_model.encoder.layers.0.mlp.fc2"
    ):
        moesaic.certify(folder, tmp_path / "moe", data=["the red fox"])
    file = next((tmp_path / "moe").glob("*.safetensors"))
    state = load_file(file)
    name = next(name for name in state if name.endswith("experts.down_proj"))
    save_file({**state, name: state[name] * 2}, file, {"format": "pt"})
    with pytest.raises(CertificateError, match="sparse_upcycling: the converted model must compute what the dense one"):
        moesaic.certify(folder, tmp_path / "moe")


class TestRefusals:
    def refused(self, source: Path, kind: type[Exception], match: str, **options: Any) -> None:
        checkpoint = DenseCheckpoint.open(source)
        with pytest.raises(kind, match=match):
            prepare(checkpoint.config, Options(MoESpec(4, 2), SparseUpcycling(), **options), checkpoint.infos)

    def test_a_tower_that_is_not_there(self, dense: Callable[[str], tuple[Path, Any]]) -> None:
        self.refused(dense("bert")[0], PlanError, "--tower vision: some FFN must stand", tower="vision")

    def test_a_target_that_is_not_there(self, dense: Callable[[str], tuple[Path, Any]]) -> None:
        self.refused(dense("bert")[0], ArchitectureError, "Got 'splicee'. Did you mean 'splice'", target="splicee")

    def test_a_class_of_another_type(self, dense: Callable[[str], tuple[Path, Any]]) -> None:
        config = {**read_json(dense("bert")[0] / "config.json"), "architectures": ["RobertaModel"]}
        with pytest.raises(ArchitectureError, match=r"must name a class of model_type 'bert'\. Got RobertaModel"):
            prepare(config, Options(MoESpec(4, 2), SparseUpcycling()))

    def test_a_layer_that_is_not_there(self, dense: Callable[[str], tuple[Path, Any]]) -> None:
        checkpoint = DenseCheckpoint.open(dense("bert")[0])
        options = Options(MoESpec(4, 2, layers=Layers("7")), SparseUpcycling())
        with pytest.raises(PlanError, match=r"encoder.layer: layers: every index must be below .* 2 layers"):
            prepare(checkpoint.config, options, checkpoint.infos)

    def test_a_model_that_was_spliced_before(self, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]) -> None:
        out = upcycle(dense("bert")[0], tmp_path / "moe")
        self.refused(out, ArchitectureError, "the model must be dense. Got one with MoE layers")

    def test_a_runtime_that_has_no_such_class(self, dense: Callable[[str], tuple[Path, Any]]) -> None:
        self.refused(dense("bert")[0], PlanError, "--for vllm: MoE layers inside 'bert'", runtime="vllm")

    def test_code_that_comes_with_the_model(self, tmp_path: Path, dense: Callable[[str], tuple[Path, Any]]) -> None:
        config = {**read_json(dense("bert")[0] / "config.json"), "auto_map": {"AutoModel": "evil.Model"}}
        with pytest.raises(ArchitectureError, match="the model's class must be transformers' own"):
            prepare(config, Options(MoESpec(4, 2), SparseUpcycling()))

    def test_a_checkpoint_without_its_ffn(self, dense: Callable[[str], tuple[Path, Any]]) -> None:
        checkpoint = DenseCheckpoint.open(dense("bert")[0])
        lost = "bert.encoder.layer.0.output.dense.weight"
        infos = {name: info for name, info in checkpoint.infos.items() if name != lost}
        with pytest.raises(CheckpointError, match=lost):
            prepare(checkpoint.config, Options(MoESpec(4, 2), SparseUpcycling()), infos)

    def test_a_model_without_ffns(self) -> None:
        config = {"model_type": "resnet", "architectures": ["ResNetModel"], "depths": [1, 1], "hidden_sizes": [8, 16]}
        with pytest.raises(ArchitectureError, match="it must hold an FFN made of linears"):
            prepare(config, Options(MoESpec(4, 2), SparseUpcycling()))


def test_the_command_line_converts_certifies_and_says_how_to_load(
    tmp_path: Path, dense: Callable[[str], tuple[Path, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = spliceable.save(dense("whisper")[1].float(), tmp_path / "dense")
    dense("whisper")[1].double()
    assert run(["upcycle", str(folder), str(tmp_path / "moe"), "--experts", "sparse_upcycling", "--tower", "decoder",
                "--num-experts", "4", "--json"]) == 0  # fmt: skip
    made = json.loads(capsys.readouterr().out)
    assert made["target"] == "moesaic_whisper"
    assert made["certificate"]["promised"] is True
    assert len(made["certificate"]["layers"]) == 2
    card = (tmp_path / "moe" / "README.md").read_text()
    assert "AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)" in card
    assert "--tower decoder" in card
    code = f"import moesaic; print(type(moesaic.load({str(tmp_path / 'moe')!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "MoEWhisperForConditionalGeneration\n"
