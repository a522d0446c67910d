"""What `observe` tells of a model equals what its layers computed with, in every class and under every wrapper."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tests.integration import pico, spliceable
from tests.integration.test_pairs import SEEN_AND_HEARD, load, samples, upcycle
from torch.testing import assert_close

import moesaic
from moesaic.architectures import SparseTarget, records
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.convert import Options, convert
from moesaic.errors import ObjectiveError, ObservationError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.losses.router_z import RouterZ
from moesaic.observing import GROUPS, Observer, Pass, inner, moe_blocks, observe
from moesaic.routers.normal import Normal
from moesaic.routing import NO_GROUP
from moesaic.spec import MoESpec
from moesaic.training.objective import RouterObjective

FLOAT32: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}
"""The rounding of a sum of 64 float32 products, once in the model's order and once in the test's."""
EXACT: dict[str, float] = {"rtol": 0, "atol": 1e-12}
"""float64 and the same numbers."""

STOCK = {target: (name, sample) for name, target, sample in samples()}
"""Sparse class -> a dense pico and the largest sample that it can express."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[transformers.PreTrainedModel, Path]]:
    """Return a maker of sparse models by target, composite or spliceable name: all weights at random."""

    @cache
    def folder_of(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        if name in spliceable.MODELS:
            spliceable.save(spliceable.make(name), folder / "dense")
            chosen = Options(MoESpec(4, 2), SparseUpcycling(), Normal(std=0.5), target="splice")
            convert(DenseCheckpoint.open(folder / "dense"), folder / "moe", chosen)
            return folder / "moe"
        if name in pico.COMPOSITES:
            pico.save_composite(folder / "dense", name)
            return upcycle(folder / "dense", folder / "moe")
        dense, sample = STOCK[name]
        pico.save_text(folder / "dense", dense)
        return upcycle(folder / "dense", folder / "moe", sample, name)

    def make(name: str) -> tuple[transformers.PreTrainedModel, Path]:
        folder = folder_of(name)
        if name in spliceable.MODELS:
            return spliceable.randomised(moesaic.load(folder)), folder
        return pico.randomize(load(folder)), folder

    return make


@contextmanager
def inputs_of(model: torch.nn.Module, paths: list[str], outputs: bool = False) -> Iterator[list[Any]]:
    """Collect what the modules at `paths` are given, or return."""
    found: list[Any] = []
    modules = [model.get_submodule(path) for path in paths]
    if outputs:
        handles = [one.register_forward_hook(lambda _m, _a, out: found.append(out)) for one in modules]
    else:
        handles = [one.register_forward_pre_hook(lambda _m, args: found.append(args)) for one in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def router_paths(model: torch.nn.Module) -> list[str]:
    """Return the modules that hold routers, by the records of the certificate rather than by `moe_blocks`."""
    ends = {f".{way}" for record in records(SparseTarget).values() for way in record.router_modules}
    found = [name for name, module in model.named_modules() if any(name.endswith(end) for end in ends)]
    holding = [name for name in found if "weight" in dict(model.get_submodule(name).named_parameters(recurse=False))]
    return [name for name in holding if model.get_submodule(name).weight.shape[0] == 4]


def routed(experts: Any, x_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
    """Return `sum_k weight_k expert_k(x)`, token by token, expert by expert."""
    y_TD = torch.zeros_like(x_TD)
    for place in range(ids_TK.shape[1]):
        for expert in range(experts.down_proj.shape[0]):
            chosen = ids_TK[:, place] == expert
            gate, up = (x_TD[chosen] @ experts.gate_up_proj[expert].T).chunk(2, -1)
            down = (experts.act_fn(gate) * up) @ experts.down_proj[expert].T
            y_TD[chosen] += weights_TK[chosen, place, None].to(down.dtype) * down
    return y_TD


@torch.no_grad()
def assert_told_what_was_computed(model: Any, inputs: dict[str, Any]) -> None:
    for name, scale in model.named_parameters():
        if name.endswith("per_expert_scale"):
            scale.fill_(1)  # else gates are no shares
    blocks, paths = moe_blocks(model), router_paths(model)
    experts = [f"{block.path}.experts" for block in blocks]
    with (
        observe(model) as passes,
        inputs_of(model, paths) as scored,
        inputs_of(model, experts) as given,
        inputs_of(model, experts, outputs=True) as came,
    ):
        model(**inputs)
    (routings,) = passes
    assert [routing.layer for routing in routings] == [block.path for block in blocks]
    assert len(routings) == len(paths) > 0
    for routing, path, (x_router, *_), (x_TD, *_), y_TD, block in zip(
        routings, paths, scored, given, came, blocks, strict=True
    ):
        weight_ED = model.get_submodule(path).weight
        assert block.router_weight is weight_ED
        logits_TE = x_router.reshape(-1, x_router.shape[-1]).float() @ weight_ED.float().T
        assert_close(routing.logits_TE.float(), logits_TE, **FLOAT32)
        want_TD = routed(model.get_submodule(f"{block.path}.experts"), x_TD, routing.ids_TK, routing.weights_TK)
        assert_close(y_TD.reshape(x_TD.shape), want_TD, **FLOAT32)
        gates_TK = routing.probs_TE.gather(1, routing.ids_TK)
        shares_TK = gates_TK / gates_TK.sum(-1, keepdim=True)
        assert_close(routing.weights_TK / routing.weights_TK.sum(-1, keepdim=True), shares_TK, **FLOAT32)


@pytest.mark.parametrize("target", STOCK)
def test_a_stock_class_computed_with_what_is_told(target: str, made: Callable[[str], Any]) -> None:
    model, _ = made(target)
    assert_told_what_was_computed(model, {"input_ids": pico.tokens()})
    want = "sigmoid" if target in ("glm4_moe", "dots1", "lfm2_moe") else "softmax"
    assert {block.score for block in moe_blocks(model)} == {want}


@pytest.mark.parametrize("name", ["qwen3-vl", "llava-llama", "idefics3", "qwen2-audio", "lfm2-vl"])
def test_a_composite_computed_with_what_is_told(name: str, made: Callable[[str], Any]) -> None:
    model, _ = made(name)
    inputs = SEEN_AND_HEARD.get(name, lambda: {"input_ids": pico.tokens()})()
    assert_told_what_was_computed(model, dict(inputs))
    assert {block.score for block in moe_blocks(model)} == {"sigmoid" if name == "lfm2-vl" else "softmax"}


def test_every_target_is_tested() -> None:
    assert {*STOCK, "qwen3_vl_moe_text"} == set(records(SparseTarget))


@pytest.mark.parametrize("name", ["vit", "whisper", "clip-b32", "bert", "t5-gated", "m2m100"])
@torch.no_grad()
def test_a_spliced_model_computed_with_what_is_told(name: str, made: Callable[[str], Any]) -> None:
    model, _ = made(name)
    blocks = moe_blocks(model)
    experts = [f"{block.path}.experts" for block in blocks]
    with (
        observe(model) as passes,
        inputs_of(model, experts) as given,
        inputs_of(model, [block.path for block in blocks], outputs=True) as came,
    ):
        model(**spliceable.inputs(model))
    at = {block.path: block for block in blocks}
    assert sorted(routing.layer for routing in passes[0]) == sorted(at)  # CLIP runs its second tower first
    for routing, (x_TD, ids_TK, weights_TK), y in zip(passes[0], given, came, strict=True):
        block = at[routing.layer]
        assert_close(routing.logits_TE, x_TD @ block.router_weight.T, **EXACT)
        assert_close((routing.ids_TK, routing.weights_TK), (ids_TK, weights_TK), **EXACT)
        assert_close(y.reshape(x_TD.shape), oracle_output(block.module, x_TD), **EXACT)
        assert routing.probs_TE.dtype == torch.float64


def oracle_output(layer: Any, x_TD: torch.Tensor) -> torch.Tensor:
    """Return the layer's output from its experts one by one, with gates recomputed from the router's weight."""
    experts, gates_TE = layer.experts, (x_TD @ layer.router.weight.T).softmax(-1)
    weights_TK, ids_TK = gates_TE.topk(2, -1)
    weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    y_TD = torch.zeros_like(x_TD)
    up_END, bias_EN = getattr(experts, experts.up_name), getattr(experts, f"{experts.up_name}_bias")
    for expert in range(4):
        h = x_TD @ up_END[expert].T + (0 if bias_EN is None else bias_EN[expert])
        h = experts.act(h.chunk(2, -1)[0]) * h.chunk(2, -1)[1] if experts.gated else experts.act(h)
        down = h @ experts.down_proj[expert].T
        down = down if experts.down_proj_bias is None else down + experts.down_proj_bias[expert]
        y_TD += (weights_TK * (ids_TK == expert)).sum(-1, keepdim=True) * down
    return y_TD


@pytest.fixture
def mixtral() -> transformers.PreTrainedModel:
    return tiny()


def tiny(dtype: torch.dtype = torch.float64, **changes: Any) -> transformers.PreTrainedModel:
    """Return a Mixtral of two layers in float64, whose experts are computed one by one."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
    }
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**{**settings, **changes}))
    model.set_experts_implementation("eager")
    return pico.randomize(model).to(dtype)


def seen_by(model: torch.nn.Module, **inputs: Any) -> tuple[Any, ...]:
    with observe(model) as passes:
        model(**inputs)
    return passes[0]


IDS = pico.tokens(6, batch=2) % 60


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_text_is_left_out(side: str, mixtral: Any) -> None:
    """What is told of a padded text is what is told of the text alone."""
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    mask = mask.flip(1) if side == "left" else mask
    places = (mask.cumsum(1) - 1).clamp_min(0)
    short = IDS[1][mask[1].bool()][None]
    with torch.no_grad():
        padded = seen_by(
            mixtral, input_ids=IDS, attention_mask=mask, position_ids=places, **{GROUPS: torch.tensor([5, 7])}
        )
        alone = seen_by(mixtral, input_ids=short)
    for routing, want in zip(padded, alone, strict=True):
        assert routing.ids_TK.shape == (10, 2)
        assert_close(routing.logits_TE[6:], want.logits_TE, **EXACT)
        assert_close(routing.ids_TK[6:], want.ids_TK)
        assert routing.group_T.tolist() == [5] * 6 + [7] * 4
        first, second = routing.sequence_T.split([6, 4])
        assert len(first.unique()) == len(second.unique()) == 1
        assert first[0] != second[0]


def test_packed_texts_are_sequences_of_their_own(mixtral: Any) -> None:
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 0, 1]])
    with torch.no_grad():
        routing = seen_by(mixtral, input_ids=IDS, position_ids=places)[0]
    assert routing.sequence_T.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_groups_of_tokens_are_told_and_the_model_never_sees_them(mixtral: Any) -> None:
    groups = torch.arange(12).reshape(2, 6) % 3
    with torch.no_grad():
        want = mixtral(input_ids=IDS).logits
        with observe(mixtral) as passes:
            assert_close(mixtral(input_ids=IDS, **{GROUPS: groups}).logits, want, rtol=0, atol=0)  # the same call
    assert_close(passes[0][0].group_T, groups.flatten())


def test_several_observers_are_told_of_the_same_groups(mixtral: Any) -> None:
    with observe(mixtral) as first, observe(mixtral) as second, torch.no_grad():
        mixtral(input_ids=IDS, **{GROUPS: torch.tensor([4, 5])})
    for passes in (first, second):
        assert passes[0][1].group_T.tolist() == [4] * 6 + [5] * 6


def test_tokens_decoded_with_a_cache_are_told_without_the_padding_before_them(mixtral: Any) -> None:
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    with observe(mixtral) as passes, torch.no_grad():
        mixtral.generate(IDS, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=63)
    assert [len(one[0].ids_TK) for one in passes] == [10, 2, 2]


@pytest.mark.parametrize("masked", ["mask", "labels"])
def test_each_side_of_an_encoder_decoder_has_its_own_mask(masked: str, made: Callable[[str], Any]) -> None:
    model, _ = made("m2m100")
    mask, later = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]]), torch.tensor([[1] * 5, [1] * 4 + [0]])
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if masked == "mask":
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": later}
    else:  # of labels, the decoder reads each one place later
        inputs |= {"labels": ids.masked_fill(torch.tensor([[0] * 5, [0, 0, 0, 1, 1]]).bool(), -100)}
    with torch.no_grad():
        found = seen_by(model, **inputs)
    assert {len(one.ids_TK) for one in found if ".encoder." in one.layer} == {7}
    assert {len(one.ids_TK) for one in found if ".decoder." in one.layer} == {9}


def test_decoder_tokens_without_any_mask_are_all_real(made: Callable[[str], Any]) -> None:
    """Even where they happen to be as many as the encoder's, whose mask says nothing of them."""
    model, _ = made("m2m100")
    ids = torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])
    with torch.no_grad():
        found = seen_by(model, input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
    assert {len(one.ids_TK) for one in found if ".decoder." in one.layer} == {10}


def test_frames_of_silence_are_left_out(made: Callable[[str], Any]) -> None:
    """Whisper's mask counts spectrogram frames, two of which make a token of its encoder."""
    model, _ = made("whisper")
    inputs = spliceable.inputs(model)
    frames = torch.ones(2, 40, dtype=torch.long)
    frames[1, 12:] = 0
    with torch.no_grad():
        found = seen_by(model, **inputs, attention_mask=frames)
    encoder, decoder = ([one for one in found if f".{side}." in one.layer] for side in ("encoder", "decoder"))
    assert {len(one.ids_TK) for one in encoder} == {26}
    assert [(one.sequence_T == 1).sum().item() for one in encoder] == [6, 6]
    assert {len(one.ids_TK) for one in decoder} == {10}


def test_pictures_and_texts_of_one_batch_do_not_share_a_mask(made: Callable[[str], Any]) -> None:
    """Four pictures of 17 patches and two texts of 17 tokens: the mask is of the texts alone."""
    model, _ = made("clip-b16")
    inputs = spliceable.inputs(model)
    ids = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[1, 9:] = 0
    four = torch.cat([inputs["pixel_values"]] * 2)
    with torch.no_grad():
        same = seen_by(model, input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"])
        other = seen_by(model, input_ids=ids, attention_mask=mask, pixel_values=four)
    for found, pictures in ((same, 2), (other, 4)):
        for one in found:
            if one.layer.startswith("vision"):
                assert_close(one.sequence_T, torch.arange(pictures).repeat_interleave(17))
            else:
                assert one.sequence_T.tolist() == [0] * 17 + [1] * 9


def test_groups_that_fit_no_layer_are_of_none(made: Callable[[str], Any]) -> None:
    model, _ = made("vit")
    with torch.no_grad():
        found = seen_by(model, **spliceable.inputs(model), **{GROUPS: torch.zeros(2, 3, dtype=torch.long)})
    assert set(found[0].group_T.tolist()) == {NO_GROUP}


def test_under_autocast_the_scores_stay_wide(made: Callable[[str], Any]) -> None:
    model, _ = made("mixtral")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = seen_by(model, input_ids=pico.tokens())
        with inputs_of(model, [f"{block.path}.experts" for block in moe_blocks(model)]) as given:
            model(input_ids=pico.tokens())
    for routing, (_, ids_TK, weights_TK) in zip(found, given, strict=True):
        assert (routing.logits_TE.dtype, routing.probs_TE.dtype) == (torch.bfloat16, torch.float32)
        assert_close((routing.ids_TK, routing.weights_TK), (ids_TK, weights_TK), rtol=0, atol=0)  # the same call


def router_gradients(model: torch.nn.Module, **inputs: Any) -> list[torch.Tensor]:
    """Return the gradients at the routers of the model's loss with a large z-loss, and how often layers were told."""
    model.train()
    objective = RouterObjective([RouterZ(weight=1.0)]).attach(model)
    try:
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert len(objective.log()) == len(moe_blocks(inner(model)))
        assert objective.passes == 1
    finally:
        objective.detach()
    found = [block.router_weight.grad.clone() for block in moe_blocks(inner(model))]
    model.zero_grad()
    return found


def test_checkpointed_layers_are_told_once_and_have_the_same_gradients(mixtral: Any) -> None:
    want = router_gradients(mixtral, input_ids=IDS)
    mixtral.gradient_checkpointing_enable({"use_reentrant": False})
    assert_close(router_gradients(mixtral, input_ids=IDS), want, **EXACT)
    mixtral.gradient_checkpointing_disable()
    with torch.no_grad():
        bare = mixtral.train()(input_ids=IDS, labels=IDS).loss
    assert torch.isfinite(bare)
    plain = torch.autograd.grad(mixtral(input_ids=IDS, labels=IDS).loss, moe_blocks(mixtral)[0].router_weight)[0]
    assert (want[0] - plain).abs().max() > 1e-3  # the z-loss did reach the routers


def test_reentrant_checkpointing_is_refused(mixtral: Any) -> None:
    mixtral.gradient_checkpointing_enable({"use_reentrant": True})
    mixtral.enable_input_require_grads()
    with pytest.raises(ObjectiveError, match="use_reentrant=False"):
        router_gradients(mixtral, input_ids=IDS)


def test_a_compiled_model_is_told_of_the_same(mixtral: Any) -> None:
    want = router_gradients(mixtral, input_ids=IDS)
    compiled = torch.compile(mixtral, backend="aot_eager")
    assert_close(router_gradients(compiled, input_ids=IDS), want, **EXACT)


@pytest.mark.parametrize("target", ["mixtral", "glm4_moe"])
@torch.no_grad()
def test_observing_breaks_no_graph(target: str, made: Callable[[str], Any]) -> None:
    """A compiled model stays as many graphs as it was, and nothing is compiled anew at the second pass."""
    model, _ = made(target)
    want = seen_by(model, input_ids=pico.tokens())
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(input_ids=pico.tokens())
    bare = len(graphs)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    with observe(compiled) as passes:
        compiled(input_ids=pico.tokens())
        compiled(input_ids=pico.tokens())
    assert len(graphs) == 2 * bare
    for found in passes:
        assert_close([one.logits_TE for one in found], [one.logits_TE for one in want], **FLOAT32)
        assert_close([one.ids_TK for one in found], [one.ids_TK for one in want])


def test_a_folder_loaded_with_its_own_code_is_told_of(made: Callable[[str], Any]) -> None:
    _, folder = made("bert")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).double()
    assert "transformers_modules" in type(model).__module__
    with torch.no_grad():
        found, want = (seen_by(one, **spliceable.inputs(one)) for one in (model, moesaic.load(folder).double()))
    assert_close([one.logits_TE for one in found], [one.logits_TE for one in want], **EXACT)


EXPERTS_LORA = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "r": 2}


@pytest.mark.parametrize("also", [{}, {"modules_to_save": ["gate"]}, {"target_modules": ["q_proj"]}], ids=str)
def test_lora_on_experts(also: dict[str, Any], mixtral: Any) -> None:
    """What is told of is what runs: a trained copy of the router, too."""
    want = seen_by(mixtral, input_ids=IDS)
    told: list[Pass] = []
    adapted = peft.get_peft_model(mixtral, peft.LoraConfig(**EXPERTS_LORA, **also))
    observer = Observer(adapted, told.append)
    adapted(IDS)
    for routing, one in zip(told[0].routings, want, strict=True):
        assert_close(routing.logits_TE, one.logits_TE, **EXACT)
        assert routing.layer == one.layer
    assert told[0].inputs["input_ids"] is IDS
    if "modules_to_save" in also:
        assert all(block.router_weight.requires_grad for block in observer.blocks)
        (grad,) = torch.autograd.grad(told[0].routings[0].logits_TE.sum(), observer.blocks[0].router_weight)
        assert grad.abs().max() > 0


def test_lora_after_observing_began(mixtral: Any) -> None:
    """On experts it is the same; a copy of the router that comes later is refused rather than missed."""
    told: list[Pass] = []
    Observer(mixtral, told.append)
    adapted = peft.get_peft_model(mixtral, peft.LoraConfig(**EXPERTS_LORA))
    adapted(IDS)
    assert len(told[0].routings) == 2
    copied = peft.get_peft_model(adapted.unload(), peft.LoraConfig(**EXPERTS_LORA, modules_to_save=["gate"]))
    with pytest.raises(ObservationError, match="attach after it"):
        copied(IDS)


def test_lora_on_a_router_is_in_the_logits(made: Callable[[str], Any]) -> None:
    model, _ = made("bert")
    before = seen_by(model, **spliceable.inputs(model))[0].logits_TE
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["router"], r=2, init_lora_weights=False))
    with inputs_of(adapted, ["base_model.model." + moe_blocks(inner(adapted))[0].path + ".experts"]) as given:
        found = seen_by(adapted, **spliceable.inputs(model))[0]
    assert (found.logits_TE - before).abs().max() > 1e-3
    assert_close(found.ids_TK, given[0][1])
    assert_close(found.logits_TE.softmax(-1).topk(2).indices, given[0][1])


def test_a_failed_pass_leaves_nothing_behind(mixtral: Any) -> None:
    with observe(mixtral) as passes, torch.no_grad():
        with pytest.raises(IndexError):
            mixtral(input_ids=IDS + 1000)
        mixtral(input_ids=IDS)
    assert [len(one) for one in passes] == [2]


def test_nothing_is_told_after_the_block(mixtral: Any) -> None:
    with observe(mixtral) as passes:
        pass
    mixtral(input_ids=IDS)
    assert not passes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in mixtral.modules())


def test_a_dense_model_is_refused() -> None:
    dense = transformers.LlamaForCausalLM(pico.text_config("llama"))
    with (
        pytest.raises(ObservationError, match="LlamaForCausalLM: a model that is observed must have MoE layers"),
        observe(dense),
    ):
        pass


def test_experts_of_transformers_4_are_refused() -> None:
    """There a layer has a list of experts, each a module of its own."""
    layer = torch.nn.Module()
    layer.gate = torch.nn.Linear(8, 4, bias=False)
    layer.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
    with pytest.raises(ObservationError, match="must have MoE layers with stacked experts"):
        moe_blocks(torch.nn.Sequential(layer))


def test_a_class_whose_experts_are_called_otherwise_is_refused() -> None:
    settings = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 32}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64}
    config = transformers.Llama4TextConfig(**settings, num_local_experts=4, pad_token_id=0)
    model = transformers.Llama4ForCausalLM(config)
    with observe(model), pytest.raises(ObservationError, match="called with tokens, ids and gates"):
        model(input_ids=IDS)


def test_a_replica_is_refused(mixtral: Any) -> None:
    """DataParallel runs replicas in threads, which share the hooks; nn.parallel.replicate makes them so."""
    with observe(mixtral), pytest.raises(ObservationError, match=r"Got a replica by torch\.nn\.DataParallel"):
        mixtral._replicate_for_data_parallel()(input_ids=torch.ones(1, 3, dtype=torch.long))
