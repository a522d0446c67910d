"""The ensemble teacher: dense in every class, an average of its student, and no trouble to anybody else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tests.integration import pico, spliceable, teacher_ranks
from tests.integration import training_picos as picos
from tests.integration.test_pairs import load, samples, upcycle
from tests.integration.two_processes import two_processes
from torch.testing import assert_close

import moesaic
from moesaic.calibration.ranks import Ranks
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, convert
from moesaic.errors import ObjectiveError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.losses.eesd import Eesd
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.observing import Observer, moe_blocks, observe
from moesaic.routers.normal import Normal
from moesaic.spec import MoESpec
from moesaic.training import RouterObjective
from moesaic.training.averaging import Average
from moesaic.training.dense_routing import route_to_all
from moesaic.training.teacher import EnsembleTeacher

EXACT: dict[str, float] = {"rtol": 0, "atol": 1e-10}
"""float64, a handful of sums in another order."""
GATES: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}
"""Most classes score in float32, some in the test's order of operations and some not."""
SAME: dict[str, float] = {"rtol": 0, "atol": 0}
"""Nothing is computed otherwise."""

STOCK = {target: (name, sample) for name, target, sample in samples()}
SCALE = 2.5
LANGUAGE = ("gpt2", "whisper", "t5")
ENCODERS = ("vit", "dinov2", "clip-b32", "siglip-vision", "modernbert")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return a maker of sparse models in float64 by target or spliceable name: all weights at random."""

    @cache
    def folder_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        if name in STOCK:
            pico.save_text(folder / "dense", STOCK[name][0])
            return upcycle(folder / "dense", folder / "moe", STOCK[name][1], name)
        spliceable.save(spliceable.make(name), folder / "dense")
        chosen = Options(MoESpec(4, 2), SparseUpcycling(), Normal(std=0.5), target="splice")
        convert(DenseCheckpoint.open(folder / "dense"), folder / "moe", chosen)
        return folder / "moe"

    def make(name: str) -> Any:
        if name not in STOCK:
            return spliceable.randomised(moesaic.load(folder_of(name)))
        model: Any = pico.randomize(load(folder_of(name)))
        model.set_experts_implementation("eager")
        return model.double()

    return make


def one_step(model: Any, method: Eesd, **inputs: Any) -> tuple[EnsembleTeacher, dict[str, float], torch.Tensor]:
    """Run the student once; return its teacher, the terms and the loss."""
    teacher = EnsembleTeacher(method)
    objective = RouterObjective(parts=[teacher]).attach(model.train())
    output = model(**inputs)
    loss = output.loss if output.get("loss") is not None else objective.pending()
    return teacher, objective.log(), loss


def all_experts(experts: Any, x_TD: torch.Tensor) -> torch.Tensor:
    """Return what each expert makes of each token, [T, E, D]."""
    made = []
    for expert in range(len(experts.down_proj)):
        gate, up = (x_TD @ experts.gate_up_proj[expert].T).chunk(2, -1)
        made.append((experts.act_fn(gate) * up) @ experts.down_proj[expert].T)
    return torch.stack(made, 1)


@pytest.mark.parametrize("target", STOCK)
@torch.no_grad()
def test_a_stock_layer_run_densely_is_the_sum_over_all_experts(target: str, made: Callable[[str], Any]) -> None:
    model = made(target)
    for module in model.modules():
        if "routed_scaling_factor" in vars(module):
            module.routed_scaling_factor = SCALE
        if target == "qwen2_moe" and "norm_topk_prob" in vars(module):
            module.norm_topk_prob = False  # probabilities as they are
    given: list[Any] = []
    for block in route_to_all(model):
        block.experts.register_forward_hook(lambda m, args, out: given.append((m, args, out)))
    with observe(model) as passes:
        model(input_ids=pico.tokens())
    assert len(given) == len(passes[0]) > 0
    for routing, block, (experts, (x_TD, *_), y_TD) in zip(passes[0], moe_blocks(model), given, strict=True):
        gate_TE = routing.shares_TE.to(x_TD.dtype)
        if block.score == "sigmoid":
            gate_TE = gate_TE * SCALE
        for name, scale_E in block.module.named_parameters():
            if name.endswith("per_expert_scale"):
                gate_TE = gate_TE * scale_E
        want_TD = (gate_TE[..., None] * all_experts(experts, x_TD)).sum(1)
        assert_close(y_TD.reshape(x_TD.shape), want_TD, **GATES)


@pytest.mark.parametrize("name", ["vit", "whisper"])
@torch.no_grad()
def test_a_spliced_layer_run_densely_is_the_sum_over_all_experts(name: str, made: Callable[[str], Any]) -> None:
    model = made(name)
    given: list[Any] = []
    for block in route_to_all(model):
        block.experts.register_forward_hook(lambda m, args, out: given.append((m, args, out)))
    with observe(model) as passes:
        model(**spliceable.inputs(model))
    for routing, (experts, (x_TD, *_), y_TD) in zip(passes[0], given, strict=True):
        each = zip(experts.up_proj, experts.up_proj_bias, experts.down_proj, experts.down_proj_bias, strict=True)
        out = [experts.act(x_TD @ up.T + up_bias) @ down.T + bias for up, up_bias, down, bias in each]
        want_TD = (routing.probs_TE[..., None] * torch.stack(out, 1)).sum(1)
        assert_close(y_TD, want_TD, **EXACT)


def test_where_all_experts_are_chosen_teacher_and_student_are_one() -> None:
    model = picos.mixtral(num_experts_per_tok=4)
    batch = picos.collate(picos.examples())
    teacher, terms, _ = one_step(model, Eesd(layer_weight=1.0), **batch)
    assert_close(teacher.model(**batch).logits, model(**batch).logits, **EXACT)
    assert_close(torch.tensor(list(terms.values())), torch.zeros(2), **EXACT)


def test_identical_experts_with_normalised_gates_leave_the_layers_nothing_to_learn() -> None:
    model: Any = picos.mixtral()
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in layer.mlp.experts.parameters():
                weight.copy_(weight[:1].expand_as(weight))
    _, terms, _ = one_step(model, Eesd(layer_weight=1.0), **picos.collate(picos.examples()))
    # Gates are float32 and sum to one within its rounding, 1e-7, which is squared.
    assert_close(terms["router/eesd_layers"], 0.0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_sparse_student_is_pulled(top_k: int) -> None:
    model = picos.mixtral(num_experts_per_tok=top_k)
    teacher, terms, loss = one_step(model, Eesd(layer_weight=1.0), **picos.collate(picos.examples()))
    assert min(terms.values()) > 1e-4
    loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in teacher.model.parameters())


def test_the_term_is_the_mean_over_outputs_with_a_label() -> None:
    model, batch = picos.mixtral(), picos.collate(picos.examples())
    teacher, terms, _ = one_step(model, Eesd(weight=1.0, temperature=2.0), **batch)
    with torch.no_grad():
        kept = (batch["labels"][:, 1:] != -100).flatten()
        p, q = ((one(**batch).logits[:, :-1].flatten(0, 1)[kept] / 2).log_softmax(-1) for one in (teacher.model, model))
    assert_close(terms["router/eesd"], float(4 * (p.exp() * (p - q)).sum(-1).mean()), rtol=1e-6, atol=0)  # float32


def test_entropy_weighs_tokens_by_the_mean_over_layers() -> None:
    model, batch = picos.mixtral(), picos.collate(picos.examples("equally"))
    teacher, terms, _ = one_step(model, Eesd(weight=1.0, weighting="entropy"), **batch)
    with torch.no_grad(), observe(model.eval()) as passes:
        q = model(**batch).logits[:, :-1].log_softmax(-1)
        p = teacher.model(**batch).logits[:, :-1].log_softmax(-1)
    entropy = torch.stack([-(one.probs_TE * one.probs_TE.log()).sum(-1) / torch.tensor(4.0).log() for one in passes[0]])
    weight = entropy.mean(0).reshape(batch["labels"].shape)[:, :-1]
    want = float((weight * (p.exp() * (p - q)).sum(-1)).mean())
    assert_close(terms["router/eesd"], want, rtol=1e-5, atol=0)  # float32 gates and entropies


def test_the_average_after_three_steps() -> None:
    model, batch = picos.mixtral(), picos.collate(picos.examples())
    teacher = EnsembleTeacher(Eesd(decay=0.9))
    RouterObjective(parts=[teacher]).attach(model.train())
    halves = list(model.parameters())
    optimizers = [torch.optim.SGD(halves[:5], lr=0.1), torch.optim.SGD(halves[5:], lr=0.1)]
    want = picos.weights(model)
    for _ in range(3):
        for _ in range(2):  # micro-batches, which are no steps
            model(**batch).loss.backward()
        for optimizer in optimizers:  # two of them make one step
            optimizer.step()
            optimizer.zero_grad()
        want = {name: 0.9 * mean + 0.1 * picos.weights(model)[name] for name, mean in want.items()}
    assert teacher.steps == 3
    state = teacher.state_dict()
    for name, mean in want.items():
        assert_close(state[name], mean, rtol=0, atol=1e-15)  # mean + (1 - decay) (weight - mean), float64


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    model = picos.mixtral(torch.bfloat16)
    average, start = Average(model, 0.999), picos.weights(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    for _ in range(100):
        average.update(model)
    kept = 0.999**100
    for name, weight in model.named_parameters():
        want = kept * start[name].float() + (1 - kept) * weight.float()
        assert_close(average.state_dict()[name], want, rtol=1e-5, atol=1e-7)  # a hundred float32 steps
        assert_close(dict(average.model.named_parameters())[name], average.state_dict()[name].bfloat16(), **SAME)


def test_buffers_follow_at_once() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    average = Average(model, 0.999)
    model(torch.randn(8, 3))
    average.update(model)
    for name, buffer in model.named_buffers():
        assert_close(average.state_dict()[name], buffer, **SAME)


def test_a_teacher_of_no_weight_disturbs_nothing() -> None:
    """Dropout draws the same, the observer hears one pass, gradients are the same bits."""
    rows, heard, states, trained = picos.examples(), [], [], []
    for teachers in ([], [EnsembleTeacher(Eesd(weight=0.0))]):
        model = picos.mixtral(attention_dropout=0.3)
        Observer(model, lambda one: heard.append(len(one.seen)))
        torch.manual_seed(5)
        trained.append(picos.plain(model, rows, RouterObjective([LoadBalancing()], parts=teachers)))
        states.append(torch.get_rng_state())
    assert heard == [2] * (2 * picos.STEPS)
    assert_close(states[1], states[0], **SAME)
    for name, weight in trained[0].items():
        assert_close(trained[1][name], weight, **SAME)


@pytest.mark.parametrize("name", [*LANGUAGE, *ENCODERS])
def test_spliced_models_have_something_to_compare(name: str, made: Callable[[str], Any]) -> None:
    model = made(name)
    inputs = spliceable.inputs(model)
    if name in LANGUAGE:
        read = inputs.pop("decoder_input_ids", inputs.get("input_ids"))
        model.config.decoder_start_token_id = 1
        inputs["labels"] = read.clone()  # Whisper and T5 make the decoder's input of them
    teacher, terms, loss = one_step(model, Eesd(layer_weight=1.0, weighting="entropy"), **inputs)
    assert min(terms.values()) > 1e-6
    loss.backward()
    assert any(weight.grad is not None for weight in model.parameters())
    assert all(weight.grad is None for weight in teacher.model.parameters())


def test_an_encoder_is_compared_by_the_cosine_of_its_last_states(made: Callable[[str], Any]) -> None:
    model = made("vit")
    inputs = spliceable.inputs(model)
    teacher, terms, _ = one_step(model, Eesd(weight=1.0), **inputs)
    with torch.no_grad():
        mine, theirs = (one.vit(**inputs).last_hidden_state for one in (model.eval(), teacher.model))
    assert_close(terms["router/eesd"], float((1 - torch.cosine_similarity(mine, theirs, -1)).mean()), **EXACT)


def test_a_model_without_anything_to_compare_is_refused(made: Callable[[str], Any]) -> None:
    model = made("dinov2")
    with pytest.raises(ObjectiveError, match=r"must have logits .* Got last_hidden_state, pooler_output.*'cosine'"):
        one_step(model, Eesd(match="kl"), **spliceable.inputs(model))
    model = made("dinov2")
    with pytest.raises(ObjectiveError, match=r"must have final features .* Got a tuple"):
        one_step(model, Eesd(match="cosine"), **spliceable.inputs(model), return_dict=False)


def resumable(folder: Path, steps: int, *, resume: bool) -> dict[str, torch.Tensor]:
    model, teacher = picos.mixtral(torch.float32), EnsembleTeacher(Eesd(weight=5.0, decay=0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if resume:
        model.load_state_dict(torch.load(folder / "model"))
        optimizer.load_state_dict(torch.load(folder / "optimizer"))
        teacher.load(folder / "teacher.safetensors")
    objective = RouterObjective(parts=[teacher]).attach(model.train())
    for _ in range(steps):
        model(**picos.collate(picos.examples())).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    teacher.save(folder / "teacher.safetensors")
    torch.save(model.state_dict(), folder / "model")
    torch.save(optimizer.state_dict(), folder / "optimizer")
    objective.detach()
    return picos.weights(model) | {f"teacher.{name}": each.clone() for name, each in teacher.state_dict().items()}


def test_a_resumed_run_is_the_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    want = resumable(tmp_path / "whole", 4, resume=False)
    resumable(tmp_path, 2, resume=False)
    got = resumable(tmp_path, 2, resume=True)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert_close(got[name], tensor, **SAME)


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    resumable(tmp_path, 1, resume=False)
    teacher = EnsembleTeacher()
    teacher.load(tmp_path / "teacher.safetensors")
    model = picos.mixtral(intermediate_size=24)
    RouterObjective(parts=[teacher]).attach(model.train())
    with pytest.raises(ObjectiveError, match=r"model.layers.0.mlp.experts.down_proj: \[4, 32, 16\] instead of"):
        model(**picos.collate(picos.examples()))
    (tmp_path / "teacher.safetensors").write_bytes(b"half")
    with pytest.raises(ObjectiveError, match="must be a safetensors file"):
        EnsembleTeacher().load(tmp_path / "teacher.safetensors")


def test_checkpointed_layers_are_compared_once() -> None:
    found = []
    for checkpointing in (False, True):
        model = picos.mixtral()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        _, terms, loss = one_step(model, Eesd(layer_weight=5.0), **picos.collate(picos.examples()))
        loss.backward()
        found.append((terms, {name: one.grad for name, one in model.named_parameters()}))
    assert found[0][0] == found[1][0]
    for name, grad in found[0][1].items():
        assert_close(found[1][1][name], grad, **EXACT)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hf_trainer_trains_as_the_plain_loop_does(accumulate: int, tmp_path: Path) -> None:
    method, rows = Eesd(weight=5.0, decay=0.5), picos.examples()
    want = picos.plain(picos.mixtral(), rows, RouterObjective(parts=[EnsembleTeacher(method)]))
    model, teacher = picos.mixtral(), EnsembleTeacher(method)
    objective = RouterObjective(parts=[teacher]).attach(model)
    size = {"per_device_train_batch_size": picos.BATCH // accumulate, "gradient_accumulation_steps": accumulate}
    arguments = transformers.TrainingArguments(str(tmp_path), **picos.ARGUMENTS, **size)
    transformers.Trainer(model, arguments, train_dataset=rows, data_collator=picos.collate).train()
    assert teacher.steps == picos.STEPS
    objective.detach()
    for name, weight in picos.weights(model).items():
        assert_close(weight, want[name], rtol=1e-6, atol=1e-7)  # Mixtral's gates and its own loss are float32


def test_a_lora_student_has_a_lora_teacher() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5)
    wrapped: Any = peft.get_peft_model(copy.deepcopy(picos.mixtral()), config)
    teacher = EnsembleTeacher(Eesd(decay=0.5, weight=1.0))
    objective = RouterObjective([LoadBalancing()], parts=[teacher]).attach(wrapped.train())
    optimizer = torch.optim.SGD([one for one in wrapped.parameters() if one.requires_grad], lr=0.1)
    for _ in range(2):
        wrapped(**picos.collate(picos.examples())).loss.backward()
        optimizer.step()
    (name,) = [name for name, _ in teacher.model.named_parameters() if "layers.1" in name and "lora_B" in name]
    mine, theirs = (model.get_parameter(name) for model in (wrapped.get_base_model(), teacher.model))
    assert teacher.steps == 2
    assert float((mine - theirs).detach().abs().max()) > 0
    objective.detach()


def test_two_processes_distil_as_one(tmp_path: Path) -> None:
    two_processes("teacher_ranks", tmp_path / "found")
    found, said = torch.load(tmp_path / "found")
    want = teacher_ranks.trained(Ranks())
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)  # Mixtral's gates and its own loss are float32
    assert "must lie in each process in one piece" in said


def test_under_accelerate_the_teacher_runs_with_its_own_weights_and_in_the_students_precision(tmp_path: Path) -> None:
    """Accelerate replaces the student's forward by one that casts, and a copy must not run the student's."""
    model, teacher = picos.mixtral(torch.float32), EnsembleTeacher()
    RouterObjective(parts=[teacher]).attach(model)
    arguments = transformers.TrainingArguments(str(tmp_path), **picos.ARGUMENTS, bf16=True)
    transformers.Trainer(model, arguments, train_dataset=picos.examples(), data_collator=picos.collate).train()
    ran: list[tuple[str, torch.dtype]] = []
    for name, one in (("teacher", teacher.model), ("student", model)):
        linear = one.get_submodule("model.layers.0.self_attn.q_proj")
        linear.register_forward_hook(lambda _m, _args, out, name=name: ran.append((name, out.dtype)))
    with torch.no_grad():
        for weight in teacher.model.parameters():
            weight.zero_()
        logits = teacher.model(input_ids=pico.tokens() % 60).logits
    assert ran == [("teacher", torch.bfloat16)]
    assert_close(logits, torch.zeros_like(logits), **SAME)


def test_a_teacher_returns_what_transformers_captures() -> None:
    model, batch = picos.mixtral(), picos.collate(picos.examples())
    with torch.no_grad():
        model(**batch, output_hidden_states=True)  # from here on modules have hooks of transformers
    teacher, _, _ = one_step(model, Eesd(), **batch)
    assert len(teacher.model(**batch, output_hidden_states=True).hidden_states) == 3
