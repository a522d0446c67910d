"""The objective trains on the losses of the whole batch, however it is split; what it can't do it refuses."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.integration import objective_ranks as ranks
from tests.integration.objective_ranks import Case
from tests.integration.two_processes import two_processes
from torch.optim.optimizer import _global_optimizer_post_hooks as STEP_HOOKS
from torch.testing import assert_close

import moesaic
from moesaic.calibration.ranks import Ranks
from moesaic.errors import ObjectiveError
from moesaic.losses.base import RouterLoss
from moesaic.losses.load_balancing import LoadBalancing
from moesaic.losses.loss_free_bias import LossFreeBias
from moesaic.losses.orthogonality import Orthogonality
from moesaic.losses.quantile_balancing import QuantileBalancing
from moesaic.losses.router_z import RouterZ
from moesaic.modeling import sections
from moesaic.modeling.spliced import MoELayer
from moesaic.observing import moe_blocks, observe
from moesaic.routing import Routing
from moesaic.training import RouterObjective
from moesaic.training.balancing import choice_bias
from moesaic.training.pooling import pool
from moesaic.training.scaling import COUNT
from moesaic.training.teacher import EnsembleTeacher

EXACT: dict[str, float] = {"rtol": 0, "atol": 1e-14}
"""float64: gradients of about 1, summed in another order."""
CASES = list(ranks.cases())


@cache
def whole(model: str, losses: tuple[Any, ...]) -> dict[str, torch.Tensor]:
    """Return what the batch in one process and one pass gives."""
    return ranks.trained(Case(model, losses, 1, "loop", expect=False), Ranks())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_process_has_the_gradient_of_the_whole_batch(case: Case) -> None:
    found = ranks.trained(case, Ranks())
    wanted = whole(case.model, case.losses)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert_close(value, wanted[name], **EXACT)


def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    two_processes("objective_ranks", tmp_path / "two.pt")
    two = torch.load(tmp_path / "two.pt")
    for case in CASES:
        found, wanted = two.pop(case.name), whole(case.model, case.losses)
        assert found.keys() == wanted.keys()
        for name, value in found.items():
            assert_close(value, wanted[name], **EXACT)
    partial = two.pop("partial")  # process 0 ran both layers, process 1 the second alone
    assert partial == {"model.layers.0.mlp": (3, [(0, 3)]), "model.layers.1.mlp": (8, [(0, 3)])}
    assert two.pop("health") == {"model.layers.0.mlp": 3, "model.layers.1.mlp": 8}
    cut, uncut = two.pop("balanced"), ranks.balanced(Ranks())
    assert all(bias.abs().max() > 0 for bias in uncut)
    assert_close(cut, uncut, rtol=0, atol=0)  # steps of one size
    assert not two


def test_a_model_that_is_dropped_leaves_nothing_behind() -> None:
    """Hooks of torch's on every optimizer's steps stay for good; they must not keep models and teachers alive."""
    gc.collect()
    hooks = set(STEP_HOOKS)
    model = ranks.model_of("mixtral")
    RouterObjective([RouterZ()], parts=[EnsembleTeacher()]).attach(model)
    trained = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(**ranks.batch()).loss.backward()
        trained.step()
    alive = weakref.ref(model)
    assert len(STEP_HOOKS) == len(hooks) + 2
    del model, trained
    gc.collect()
    assert alive() is None
    assert set(STEP_HOOKS) == hooks


def test_a_copied_model_has_an_objective_of_its_own() -> None:
    model = ranks.model_of("mixtral")
    objective = RouterObjective([RouterZ()]).attach(model)
    twin = copy.deepcopy(model)
    trained = torch.optim.SGD(twin.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = twin(**ranks.batch()).loss
        loss.backward()
        trained.step()
        losses.append(float(loss.detach()))
    assert losses[0] == float(model(**ranks.batch()).loss.detach())  # the same terms of the same weights
    assert losses[1] != losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())
    objective.detach()
    assert float(model(**ranks.batch()).loss.detach()) < losses[0]
    assert float(twin(**ranks.batch()).loss.detach()) != losses[1]


@pytest.mark.parametrize("model", ["mixtral", "spliced"])
@pytest.mark.parametrize("loss", ranks.losses(), ids=repr)
def test_the_gradient_is_that_of_the_sum_of_losses(model: str, loss: Any) -> None:
    """Against autograd through the same pass, without the objective."""
    plain = ranks.model_of(model)
    with observe(plain) as passes:
        total = plain(**ranks.batch()).loss
    bare = torch.autograd.grad(total, [p for p in plain.parameters() if p.requires_grad], retain_graph=True)
    if isinstance(loss, RouterLoss):
        terms = [loss.loss(routing) for routing in passes[0]]
    else:
        terms = [loss.loss(block.router_weight) for block in moe_blocks(plain)]
    (total + loss.weight * torch.stack(terms).mean()).backward()
    found = whole(model, (loss,))
    for (name, parameter), without in zip(plain.named_parameters(), bare, strict=True):
        assert_close(found[name], parameter.grad, **EXACT)
        if name.endswith(("gate.weight", "router.weight")):  # and the loss is felt
            assert (found[name] - without).abs().max() > 1e-5
    for block, term in zip(moe_blocks(plain), terms, strict=True):
        assert_close(found[f"router/{loss.name()}/{block.path}"], term.detach(), **EXACT)


@pytest.mark.parametrize("trainer", ["loop", "hf"])
@pytest.mark.parametrize("whole_batch", [True, False])
def test_without_the_whole_batch_a_step_is_the_mean_of_its_passes(trainer: Any, whole_batch: bool) -> None:
    """Either `expect` is not called, or `whole_batch` is off."""
    model = ranks.model_of("mixtral")
    objective = RouterObjective([LoadBalancing(weight=1.0)], whole_batch=False).attach(model)
    micros = [ranks.batch(slice(start, start + 2)) for start in (0, 2, 4, 6)]
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for micro in micros:
        model(**micro).loss.backward()
        for name, parameter in model.named_parameters():
            wanted[name] += parameter.grad / 4
        model.zero_grad()
    if not whole_batch:
        objective.expect(micros)
    for micro in micros:
        given = {**micro, COUNT: torch.tensor(ranks.counted())} if trainer == "hf" else micro
        loss = model(**given).loss
        (loss if trainer == "hf" else loss / 4).backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, wanted[name], **EXACT)


def test_the_order_of_sequences_does_not_matter() -> None:
    losses = (LoadBalancing(weight=1.0, level="sequence"), RouterZ(weight=1.0))
    model = ranks.model_of("mixtral")
    RouterObjective(losses).attach(model)
    model(**ranks.batch(torch.tensor([5, 2, 7, 0, 1, 6, 3, 4]))).loss.backward()
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, whole("mixtral", losses)[name], **EXACT)


def test_passes_made_ahead_draw_the_same_dropout() -> None:
    model = ranks.model_of("mixtral")
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    micros = [ranks.batch(slice(start, start + 4)) for start in (0, 4)]
    loss = LoadBalancing()
    objective = RouterObjective([loss]).attach(model)
    torch.manual_seed(3)
    objective.expect(micros)
    with observe(model) as passes:
        for micro in micros:
            model(**micro).loss.backward()
    pooled = pool([routing for one in passes for routing in one], moe_blocks(model), Ranks())
    logged = objective.log()
    for path, one in pooled.items():
        assert_close(logged[f"router/load_balancing/{path}"], loss.loss(one.routing).item(), **EXACT)


@pytest.mark.parametrize("micros", [1, 2])
def test_bfloat16_autocast(micros: int) -> None:
    losses = (LoadBalancing(weight=1.0), RouterZ(weight=1.0))
    found = []
    for enabled in (False, True):
        model = ranks.model_of("mixtral").float()
        objective = RouterObjective(losses).attach(model)
        size = len(ranks.LENGTHS) // micros
        batches = [ranks.batch(slice(i * size, (i + 1) * size)) for i in range(micros)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            if micros > 1:
                objective.expect(batches)
            for one in batches:
                (model(**one).loss / micros).backward()
        found.append((objective.log(), {name: p.grad for name, p in model.named_parameters()}))
    (logged, grads), (half_logged, half_grads) = found
    assert_close(half_logged, logged, rtol=0.05, atol=0)  # bfloat16 has 8 bits, and some choices flip
    for name, grad in grads.items():
        assert half_grads[name].isfinite().all()
        if name.endswith("gate.weight"):
            assert torch.cosine_similarity(half_grads[name].flatten(), grad.flatten(), 0) > 0.9


def test_a_layer_may_run_in_some_passes_or_twice_in_one() -> None:
    model = ranks.model_of("mixtral")
    blocks = moe_blocks(model)
    runs = [replace(Routing.from_logits(torch.randn(n, 4), 2), layer=blocks[1].path) for n in (3, 0, 5)]
    pooled = pool(runs, blocks, Ranks())
    assert list(pooled) == [blocks[1].path]
    one = pooled[blocks[1].path]
    assert one.parts == (slice(0, 3), slice(3, 3), slice(3, 8))
    assert_close(one.routing.logits_TE.detach(), torch.cat([run.logits_TE for run in runs]), rtol=0, atol=0)
    assert one.routing.sequence_T is not None
    assert one.routing.sequence_T.tolist() == [0] * 3 + [1] * 5


class TestRefusals:
    """What would train on something else than was asked for."""

    @pytest.fixture
    def model(self) -> Any:
        return ranks.model_of("mixtral")

    def test_a_second_objective(self, model: Any) -> None:
        first = RouterObjective([RouterZ()]).attach(model)
        hooks = len(model._forward_hooks)
        with pytest.raises(ObjectiveError, match=r"a model must have one objective\. Got a second"):
            RouterObjective([LoadBalancing()]).attach(model)
        assert len(model._forward_hooks) == hooks
        with pytest.raises(ObjectiveError, match=r"attached to one model\. Got a second"):
            first.attach(model)
        first.detach()
        assert not model._forward_hooks
        RouterObjective([LoadBalancing()]).attach(model)

    def test_another_number_of_passes_than_expected(self, model: Any) -> None:
        objective = RouterObjective([RouterZ()]).attach(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        one = ranks.batch(slice(0, 2))
        objective.expect([one, one])
        model(**one).loss.backward()
        with pytest.raises(ObjectiveError, match=r"must have the 2 passes .* Got 1\."):
            objective.expect([one, one])
        with pytest.raises(ObjectiveError, match=r"must have the 2 passes .* Got 1\."):
            optimizer.step()
        objective.expect([one, one])
        for _ in range(2):
            model(**one).loss.backward()
        with pytest.raises(ObjectiveError, match=r"must have the 2 passes .* Got another"):
            model(**one)
        optimizer.step()
        model(**one)  # nothing was said of this step

    def test_other_batches_than_expected(self, model: Any) -> None:
        objective = RouterObjective([RouterZ()]).attach(model)
        objective.expect([ranks.batch(slice(0, 2)), ranks.batch(slice(2, 4))])
        with pytest.raises(ObjectiveError, match=r"must be those that run next.* Got 13 tokens .*, for 17\."):
            model(**ranks.batch(slice(2, 4)))

    def test_expecting_in_eval_mode(self, model: Any) -> None:
        objective = RouterObjective([RouterZ()]).attach(model.eval())
        with pytest.raises(ObjectiveError, match="training mode"):
            objective.expect([ranks.batch(slice(0, 2))] * 2)

    def test_the_model_s_own_balancing_loss(self, model: Any) -> None:
        model.config.output_router_logits = True
        with pytest.raises(ObjectiveError, match="output_router_logits"):
            RouterObjective([RouterZ()]).attach(model)
        assert not model._forward_hooks

    def test_balancing_a_class_that_adds_no_bias(self, model: Any) -> None:
        with pytest.raises(ObjectiveError, match=r"MixtralSparseMoeBlock has none\. Upcycle to glm4_moe"):
            RouterObjective([LossFreeBias()]).attach(model)
        assert not model._forward_hooks

    def test_a_part_that_does_not_suit(self, model: Any) -> None:
        """Nothing stays attached, so that the next try can be right."""
        taken, free = EnsembleTeacher(), EnsembleTeacher()
        taken.attach(ranks.model_of("mixtral"))
        with pytest.raises(ObjectiveError, match=r"teacher: it must follow one model"):
            RouterObjective(parts=[free, taken]).attach(model)
        assert not model._forward_hooks
        RouterObjective(parts=[free]).attach(model)

    def test_a_loss_given_twice(self) -> None:
        with pytest.raises(ValueError, match=r"each loss must be given once\. Got router_z twice"):
            RouterObjective([RouterZ(), RouterZ(weight=0.1)])

    def test_a_pass_whose_terms_nobody_trains_on(self, model: Any) -> None:
        objective = RouterObjective([RouterZ(), Orthogonality()]).attach(model)
        ids = ranks.batch()["input_ids"]
        model(input_ids=ids)
        objective.pending().backward()
        assert model.model.layers[0].mlp.gate.weight.grad.abs().max() > 0
        model(input_ids=ids)
        with pytest.raises(ObjectiveError, match="must be trained on"):
            model(input_ids=ids)


STOCK = {
    "glm4_moe": ("Glm4MoeForCausalLM", {"n_routed_experts": 4, "first_k_dense_replace": 0, "head_dim": 8}),
    "dots1": (
        "Dots1ForCausalLM",
        {"n_routed_experts": 4, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    ),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", {"moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 0}),
    "lfm2_moe": ("Lfm2MoeForCausalLM", {"num_experts": 4, "num_dense_layers": 0, "use_expert_bias": True}),
}


def balanced_model(name: str) -> Any:
    """Return a pico model with routers that prefer one expert."""
    if name == "spliced":
        return ranks.model_of(name).float()
    class_name, own = STOCK[name]
    cls = getattr(transformers, class_name)
    config = cls.config_class(
        **{**ranks.BODY, "num_key_value_heads": 2, "moe_intermediate_size": 8, "num_experts_per_tok": 2, **own},
        **({"layer_types": ["conv", "full_attention"]} if name == "lfm2_moe" else {}),
    )
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    return model.train()


def load_cv(model: Any) -> float:
    with observe(model) as passes, torch.no_grad():
        model(**ranks.batch())
    return max(routing.load_cv() for routing in passes[0])


@pytest.mark.parametrize("name", ["spliced", *STOCK])
@pytest.mark.parametrize("balancer", [LossFreeBias(rate=0.003), QuantileBalancing()], ids=lambda b: b.name())
def test_balancers_even_out_the_load(name: str, balancer: Any) -> None:
    model = balanced_model(name)
    before, hidden = load_cv(model), {n: p.clone() for n, p in model.named_parameters()}
    RouterObjective([balancer]).attach(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.1)
    for _ in range(120):
        model(**ranks.batch()).loss.backward()
        optimizer.step()
    biases = [choice_bias(block) for block in moe_blocks(model)]
    assert all(bias.abs().max() > 0 and not bias.requires_grad for bias in biases)
    assert before > 0.25
    # Of 62 tokens, one too many for an expert is 0.03; biases that move by steps jitter by several.
    assert load_cv(model) < (0.03 if isinstance(balancer, QuantileBalancing) else before / 2)
    for parameter_name, parameter in model.named_parameters():
        if "correction_bias" not in parameter_name:
            assert_close(parameter, hidden[parameter_name], rtol=0, atol=0)  # lr 0 moves nothing


def test_a_bias_in_half_precision_becomes_float32() -> None:
    model = balanced_model("glm4_moe").bfloat16()
    RouterObjective([LossFreeBias()]).attach(model)
    assert all(choice_bias(block).dtype == torch.float32 for block in moe_blocks(model))
    model(**ranks.batch()).loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_spliced_model_keeps_its_bias_on_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    balanced_model("spliced").save_pretrained(tmp_path / "before")
    model = moesaic.load(tmp_path / "before", dtype=dtype)
    same = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 0.0}  # kernels vary with where tensors lie
    text = {name: tensor for name, tensor in ranks.batch().items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain = model.eval()(**text).logits
    RouterObjective([QuantileBalancing()]).attach(model)
    with torch.no_grad():
        assert_close(model(**text).logits, plain, rtol=0, atol=0)  # a bias of zeros chooses as none does
        for layer in (module for module in model.modules() if isinstance(module, MoELayer)):
            layer.choice_bias += torch.tensor([0.4, -0.2, 0.123456789, 0.0])
        wanted = model(**text).logits
    assert (wanted - plain).abs().max() > 0.01
    folder = tmp_path / "moe"
    model.save_pretrained(folder)
    assert all(site["choice_bias"] is True for site in moesaic_sites(folder))
    assert_close(moesaic.load(folder)(**text).logits.detach(), wanted, **same)
    config = moesaic.load(folder).config
    config.auto_map = sections.auto_map("LlamaForCausalLM")
    config.save_pretrained(folder)
    for file in sections.code_files():
        (folder / file.name).write_bytes(file.read_bytes())
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    assert type(loaded).__module__.startswith("transformers_modules")
    assert_close(loaded(**text).logits.detach(), wanted, **same)
    RouterObjective([LossFreeBias()]).attach(loaded.train())  # goes on from there
    assert_close(choice_bias(moe_blocks(loaded)[0]), torch.tensor([0.4, -0.2, 0.123456789, 0.0]), rtol=0, atol=0)


def moesaic_sites(folder: Path) -> list[dict[str, Any]]:
    import json  # noqa: PLC0415

    found: list[dict[str, Any]] = json.loads((folder / "config.json").read_text())["moesaic"]["sites"]
    return found
