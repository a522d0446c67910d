"""The AdamW state of a dense run, carried to the MoE that its model became."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.integration import spliceable
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments

import moesaic
from moesaic.errors import TrainingError
from moesaic.experts.base import ExpertInit
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.partition import Partition
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.modeling.loading import load
from moesaic.spec import MoESpec
from moesaic.training.dense_state import DenseState, Moments
from moesaic.training.optimizer_state import Carried, carry_state

SAME: dict[str, float] = {"rtol": 0, "atol": 0}
"""Copies."""
SIZES: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
LAYER = "model.layers.1."


class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 48, (9,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def arguments(folder: Path, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, weight_decay=0.1,
        save_steps=steps, report_to=[], use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", seed=1,
        max_grad_norm=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM, torch.optim.Optimizer]:
    """A checkpoint of a dense run, its model and its optimizer."""
    folder = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    trainer = Trainer(LlamaForCausalLM(LlamaConfig(**SIZES)), arguments(folder, 3), train_dataset=Data())
    trainer.train()
    return folder / "checkpoint-3", trainer.model, trainer.optimizer.optimizer


def upcycled(checkpoint: Path, folder: Path, experts: ExpertInit, **spec: Any) -> PreTrainedModel:
    moesaic.upcycle(checkpoint, folder, MoESpec(4, 2, **spec), experts=experts, certify=False)
    return load(folder)


def adamw(model: torch.nn.Module, **settings: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, **settings)


@pytest.mark.parametrize("settings", [{}, {"fused": True}])
def test_copies_take_the_state_of_what_they_copy(dense: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    checkpoint, source, dense_optimizer = dense
    model = upcycled(checkpoint, tmp_path, SparseUpcycling())
    optimizer = adamw(model, **settings)
    report = carry_state(optimizer, model, DenseState.load(checkpoint))
    routers = {f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)}
    assert set(report.reset) == routers
    assert set(report.carried) == {name for name, _ in model.named_parameters()} - routers
    assert str(report).startswith(f"optimizer state of {len(report.carried)} parameters carried over, of 2 reset")
    names = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        for key in ("exp_avg", "exp_avg_sq") if name not in routers else ():

            def was(own: str, key: str = key) -> torch.Tensor:
                return dense_optimizer.state[names[own]][key]

            mlp = name.partition("experts.")[0]
            if name.endswith("gate_up_proj"):
                one = torch.cat([was(f"{mlp}gate_proj.weight"), was(f"{mlp}up_proj.weight")])
            else:
                one = was(f"{mlp}down_proj.weight") if name.endswith("down_proj") else was(name)
            want = one.expand(parameter.shape)
            assert_close(optimizer.state[parameter][key], want, **SAME)
            assert float(optimizer.state[parameter]["step"]) == 3
    assert not any(parameter in optimizer.state for name, parameter in model.named_parameters() if name in routers)


def test_attention_goes_on_exactly_as_in_the_dense_model(dense: Any, tmp_path: Path) -> None:
    """Copies make the dense function, so other gradients are the dense ones, and with the state so are the steps."""
    checkpoint = dense[0]
    moesaic.upcycle(checkpoint, tmp_path / "moe", MoESpec(4, 2), experts=SparseUpcycling(), certify=False)
    ids = torch.stack([Data()[index]["input_ids"] for index in range(4)])
    moved = {}
    for carries in (True, False):
        model = load(tmp_path / "moe")
        optimizer = adamw(model)
        if carries:
            carry_state(optimizer, model, DenseState.load(checkpoint))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        moved[carries] = model.model.layers[1].self_attn.q_proj.weight.detach()
    alone = load(checkpoint)
    optimizer = adamw(alone)
    saved = DenseState.load(checkpoint).moments
    for name, parameter in alone.named_parameters():
        own = saved[name]
        optimizer.state[parameter] = {
            "step": torch.tensor(own.step), "exp_avg": own.exp_avg.clone(), "exp_avg_sq": own.exp_avg_sq.clone()
        }  # fmt: skip
    alone(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    want = alone.model.layers[1].self_attn.q_proj.weight.detach()
    assert_close(moved[True], want, rtol=0, atol=1e-6)  # float32 sums in another order; an update is 1e-2
    assert float((moved[False] - want).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("experts", "held"),
    [(Spri(), {"gate_up_proj"}), (Spri(placement="gate"), {"down_proj"}), (DropUpcycling(), set())],
    ids=["spri", "spri at gate", "drop"],
)
def test_only_matrices_that_were_copied_carry(dense: Any, tmp_path: Path, experts: ExpertInit, held: set[str]) -> None:
    checkpoint = dense[0]
    model = upcycled(checkpoint, tmp_path, experts)
    report = carry_state(adamw(model), model, DenseState.load(checkpoint))
    stacked = {name for name in report.carried if ".experts." in name}
    assert {name.rpartition(".")[2] for name in stacked} == held
    assert len(stacked) == 2 * len(held)
    assert f"{LAYER}self_attn.q_proj.weight" in report.carried
    assert f"{LAYER}input_layernorm.weight" in report.carried


def test_split_experts_start_afresh(dense: Any, tmp_path: Path) -> None:
    checkpoint = dense[0]
    moesaic.upcycle(checkpoint, tmp_path, MoESpec(3, 2), experts=Partition(), certify=False)
    model = load(tmp_path)
    report = carry_state(adamw(model), model, DenseState.load(checkpoint))
    assert {name for name in report.reset if name.startswith(LAYER)} == {
        f"{LAYER}mlp.{own}" for own in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    }


def test_spliced_models_with_biases(tmp_path: Path) -> None:
    """Names on both sides differ here, and first linears are stored under another module's."""
    source = spliceable.make("vit", torch.float32)
    spliceable.save(source, tmp_path / "dense")
    names = dict(source.named_parameters())
    drawn = {name: torch.rand_like(tensor) for name, tensor in names.items()}
    saved = {f"{name}.exp_avg": tensor for name, tensor in drawn.items()}
    saved |= {f"{name}.exp_avg_sq": tensor + 1 for name, tensor in drawn.items()}
    saved |= {f"{name}.step": torch.tensor(7.0) for name in drawn}
    save_file(saved, tmp_path / "state.safetensors")
    model = upcycled(tmp_path / "dense", tmp_path / "moe", SparseUpcycling(), shared_expert=False)
    optimizer = adamw(model)
    report = carry_state(optimizer, model, DenseState.load(tmp_path / "state.safetensors", tmp_path / "dense"))
    assert {name.rpartition(".")[2] + ("" if "router" not in name else " of a router") for name in report.reset} == {
        "weight of a router"
    }
    firsts = [name for name in names if ".1." in name and tuple(names[name].shape) == (48, 32)]
    (stack,) = (p for n, p in model.named_parameters() if ".1." in n and n.endswith("experts.up_proj"))
    assert len(firsts) == 1
    assert_close(optimizer.state[stack]["exp_avg"], drawn[firsts[0]].expand(4, 48, 32), **SAME)
    assert_close(optimizer.state[stack]["exp_avg_sq"], drawn[firsts[0]].expand(4, 48, 32) + 1, **SAME)
    assert float(optimizer.state[stack]["step"]) == 7


def test_a_lower_precision_is_the_same_model(dense: Any, tmp_path: Path) -> None:
    checkpoint = dense[0]
    model = upcycled(checkpoint, tmp_path, SparseUpcycling()).bfloat16()
    optimizer = adamw(model)
    report = carry_state(optimizer, model, DenseState.load(checkpoint))
    assert len(report.reset) == 2
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.bfloat16}


def test_equal_weights_take_the_nearest_name() -> None:
    """Norms that never moved are all ones: the name decides, and where it can't, nothing is carried."""
    model = moesaic_like()
    dense = {
        "layers.0.norm.weight": moments(torch.ones(4), 1.0),
        "layers.1.norm.weight": moments(torch.ones(4), 2.0),
        "head.weight": moments(model.head.weight.detach(), 3.0),
    }
    optimizer = adamw(model)
    report = carry_state(optimizer, model, DenseState(dense))
    own = model.layers[1].normalisation.weight
    assert "layers.1.normalisation.weight" in report.carried
    assert_close(optimizer.state[own]["exp_avg"], torch.full((4,), 2.0), **SAME)
    assert "final.weight" in report.reset


def moments(weight: torch.Tensor, value: float) -> Any:
    return Moments(weight, torch.full_like(weight, value), torch.full_like(weight, value), 1)


def moesaic_like() -> Any:
    from moesaic.modeling.spliced import MoELayer  # noqa: PLC0415

    site = {"hidden": 4, "num_experts": 2, "expert_size": 4, "layout": "plain", "act": "gelu", "top_k": 1}
    site |= {"normalize_gates": True, "first_bias": False, "last_bias": False, "shared_size": 0}

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalisation = torch.nn.RMSNorm(4)
            self.moe = MoELayer(site)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])
            self.final = torch.nn.RMSNorm(4)
            self.head = torch.nn.Linear(4, 9, bias=False)

    return Model()


def test_what_can_not_be_carried_says_why(dense: Any, tmp_path: Path) -> None:
    checkpoint = dense[0]
    model = upcycled(checkpoint, tmp_path / "moe", SparseUpcycling())
    state = DenseState.load(checkpoint)
    with pytest.raises(TrainingError, match="SGD: the optimizer must be Adam"):
        carry_state(torch.optim.SGD(model.parameters(), lr=0.1), model, state)
    with pytest.raises(TrainingError, match="without amsgrad"):
        carry_state(adamw(model, amsgrad=True), model, state)
    optimizer = adamw(model)
    carry_state(optimizer, model, state)
    with pytest.raises(TrainingError, match=r"must not have stepped\. Got state of 18"):
        carry_state(optimizer, model, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3)
    with pytest.raises(TrainingError, match=r"checkpoint-3: it must belong to the model .* MixtralForCausalLM"):
        carry_state(adamw(model), model, state)


def test_damaged_and_foreign_files_say_so(dense: Any, tmp_path: Path) -> None:
    checkpoint = dense[0]
    other = tmp_path / "other"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 40})).save_pretrained(other)
    with pytest.raises(TrainingError, match=r"exp_avg of .*mlp\.\w+\.weight must have the shape .* Got \[24, 32\]"):
        DenseState.load(checkpoint, other)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 1})).save_pretrained(other)
    with pytest.raises(TrainingError, match=r"optimizer\.pt: it must hold the parameters of the model beside it, 11"):
        DenseState.load(checkpoint, other)
    with pytest.raises(TrainingError, match=r"optimizer\.pt: it must be the optimizer\.pt .* FileNotFoundError"):
        DenseState.load(other)
    with pytest.raises(TrainingError, match="the dense model must lie beside its optimizer state"):
        DenseState.load(tmp_path)
    (other / "optimizer.pt").write_bytes(pickle.dumps({"param_groups": [], "state": Path}))
    with pytest.raises(TrainingError, match="of tensors alone"):  # code is never run
        DenseState.load(other)
    (other / "state.safetensors").write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"state\.safetensors: it must be a folder of HF Trainer or a safetensors"):
        DenseState.load(other / "state.safetensors")
    save_file({"model.nothing.exp_avg": torch.ones(1)}, other / "state.safetensors")
    with pytest.raises(TrainingError, match=r"model\.nothing\.exp_avg must be of a parameter of the dense model"):
        DenseState.load(other / "state.safetensors")
    save_file({"model.norm.weight.exp_avg": torch.ones(32)}, other / "state.safetensors")
    with pytest.raises(TrainingError, match=r"exp_avg_sq of model\.norm\.weight .* Got none"):
        DenseState.load(other / "state.safetensors")


def test_a_report_says_how_many() -> None:
    assert str(Carried(("a", "b"), ("c",))) == "optimizer state of 2 parameters carried over, of 1 reset"
