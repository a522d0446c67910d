from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from moesaic.architectures import DenseFamily, SparseTarget, Wrapper, records
from moesaic.architectures.config import Config
from moesaic.architectures.dense import Decoder
from moesaic.architectures.match import Match, match
from moesaic.architectures.rotary import rope_parameters
from moesaic.architectures.unsupported import ALREADY_SPARSE, UNSUPPORTED
from moesaic.convert import Options, prepare
from moesaic.errors import ArchitectureError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.spec import LayerSpec, ModelShape, MoESpec

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
GOLDEN: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(CONFIGS.glob("*.json"))
}
FAMILIES, TARGETS, WRAPPERS = records(DenseFamily), records(SparseTarget), records(Wrapper)
PUBLISHED = {
    "command-r7b": 8_028_033_024,
    "ernie-4.5-0.3b": 360_748_032,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "glm-4-9b": 9_399_951_360,
    "granite-3.1-8b": 8_170_848_256,
    "granite-4.0-micro": 3_402_836_480,
    "lfm2-1.2b": 1_170_340_608,
    "llama-2-7b": 6_738_415_616,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "olmo-2-7b": 7_298_617_344,
    "phi-3-mini-4k": 3_821_079_552,
    "phi-4-mini": 3_836_021_760,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
    "smollm2-135m": 134_515_008,
}
"""Parameters of each model, tied tensors counted once, as its publisher gives them."""
LLAMA = GOLDEN["llama-3.1-8b"]


def nothing(_: Decoder) -> Mapping[str, str]:
    return {}


def read(config: Mapping[str, Any]) -> tuple[DenseFamily, Decoder]:
    wrapper = WRAPPERS.get(config["model_type"])
    text = config[wrapper.text_key] if wrapper else config
    family = FAMILIES[text["model_type"]]
    reader = Config(text, defaults=family.absent(composite=wrapper is not None))
    decoder = family.read(reader)
    reader.finish()
    return family, decoder


def pairs() -> list[tuple[str, str]]:
    """Return one true model of each family with every target that takes it."""
    names = {config["model_type"]: name for name, config in GOLDEN.items()} | {"llama": "smollm2-135m"}
    models = [(name, *read(GOLDEN[name])) for kind, name in names.items() if kind not in WRAPPERS]
    return sorted(
        (name, target)
        for name, family, decoder in models
        for target in family.targets
        if not TARGETS[target].obstacles(decoder, {})
    )


def on_disk(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return what the model would be saved as: names and shapes, tied tensors once."""
    tied = getattr(model, "all_tied_weights_keys", {})
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def on_meta(config: Mapping[str, Any], folder: Path) -> PreTrainedModel:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = AutoConfig.from_pretrained(folder)
    class_name = config["architectures"][0]
    maker = AutoModelForCausalLM if class_name.endswith("ForCausalLM") else getattr(transformers, class_name)
    with torch.device("meta"):
        model = maker.from_config(loaded) if maker is AutoModelForCausalLM else maker(loaded)
    assert type(model).__name__ == class_name
    return model


@pytest.mark.parametrize("name", GOLDEN)
def test_a_family_lists_the_tensors_of_its_class_name_for_name(name: str, tmp_path: Path) -> None:
    family, decoder = read(GOLDEN[name])
    config = {**GOLDEN[name]}
    config.pop("auto_map", None)
    wrapper = WRAPPERS.get(config["model_type"])
    got = on_disk(on_meta(config, tmp_path))
    listed = {stored.name: stored.shape for stored in family.tensors(decoder)}
    if wrapper is not None:
        renamed = [
            {disk + key.removeprefix(text): shape for key, shape in listed.items() for text, disk in prefix.items()
             if key.startswith(text)}
            for prefix in wrapper.prefixes
        ]  # fmt: skip
        assert any(want.items() <= got.items() for want in renamed)
    else:
        assert listed == got


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_add_up_to_the_published_total(name: str) -> None:
    family, decoder = read(GOLDEN[name])
    assert sum(math.prod(stored.shape) for stored in family.tensors(decoder)) == PUBLISHED[name]


def test_parts_of_a_fused_tensor_cover_it_without_overlap() -> None:
    family, decoder = read(GOLDEN["phi-4-mini"])
    stored = {item.name: item for item in family.tensors(decoder)}["model.layers.0.self_attn.qkv_proj.weight"]
    assert [(part.role, part.start, part.stop) for part in stored.parts] == [
        ("q", 0, 3072),
        ("k", 3072, 4096),
        ("v", 4096, 5120),
    ]
    assert stored.shape == (5120, 3072)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.model_type)
def test_a_familys_defaults_are_those_of_its_class(family: DenseFamily) -> None:
    config = AutoConfig.for_model(family.model_type).to_dict()
    assert family.defaults == {key: config[key] for key in family.defaults}


def test_a_composites_text_config_takes_the_defaults_of_its_class() -> None:
    found = match(GOLDEN["llava-1.5-7b"], nothing)
    assert (found.family.model_type, found.target.model_type) == ("llama", "mixtral")
    assert (found.decoder.hidden, found.decoder.width, found.decoder.num_layers) == (4096, 11008, 32)
    assert found.wrapper is WRAPPERS["llava"]
    assert found.origin == "config.json: text_config"


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=lambda wrapper: wrapper.model_type)
def test_a_composite_is_a_class_of_transformers(wrapper: Wrapper) -> None:
    assert getattr(transformers, wrapper.class_name).config_class.model_type == wrapper.model_type


@pytest.mark.parametrize("record", [*FAMILIES.values(), *TARGETS.values()], ids=lambda record: record.model_type)
def test_a_record_names_a_class_of_transformers(record: DenseFamily | SparseTarget) -> None:
    config = AutoConfig.for_model(record.model_type)
    auto = AutoModelForCausalLM if record.class_name.endswith("ForCausalLM") else AutoModel
    assert auto._model_mapping[type(config)].__name__ == record.class_name


@pytest.mark.parametrize(("name", "target"), pairs())
def test_a_planned_checkpoint_is_what_the_sparse_class_loads(name: str, target: str, tmp_path: Path) -> None:
    config = {key: value for key, value in GOLDEN[name].items() if key != "auto_map"}
    options = Options(MoESpec(8, 2), SparseUpcycling(), target=target)
    conversion = prepare(config, options)
    model = on_meta(conversion.config, tmp_path)
    planned = {output.name: output.info.shape for output in conversion.plan.outputs}
    assert planned == {name: shape for name, shape in on_disk(model).items() if 0 not in shape}
    paths = {path for path, _ in model.named_modules()}
    assert any(f"layers.0.{path}" in path_ for path in conversion.match.target.router_modules for path_ in paths)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.model_type)
def test_every_target_belongs_to_a_family_and_knows_its_features(target: SparseTarget) -> None:
    rope = {"rope_linear", "rope_dynamic", "rope_yarn", "rope_llama3", "rope_longrope"}
    decoder = {"qkv_bias", "o_bias", "qk_norm", "conv_bias", "head_dim", "window", "layer_windows", "non_silu"}
    decoder |= {"partial_rotary", "interleaved_rotary", "mrope", "norm_offset", "layer_inputs", "k_eq_v", "per_layer"}
    decoder |= {"embedding_scale", "residual_scale", "attention_scale", "logit_scale"}
    request = {"some_layers", "leading_dense", "shared_expert", "unnormalized_gates"}
    refused = {feature for rules in target.refuses.values() for feature in rules}
    assert any(target.model_type in family.targets for family in FAMILIES.values())
    assert target.supports | target.folds | target.requires.keys() <= rope | decoder | request
    assert refused <= rope | decoder | request | {"*", "tied"}
    assert not target.supports & target.folds
    assert target.requires.keys() <= target.supports
    assert bool(target.shared) == ("shared_expert" in target.supports)
    assert not target.shared_required or target.shared
    assert "leading_dense" in target.supports or "some_layers" not in target.supports


@pytest.mark.parametrize(("name", "target"), sorted({
    "llama-3.1-8b": "mixtral", "mistral-7b-v0.1": "mixtral", "qwen2.5-7b": "qwen2_moe", "qwen3-32b": "qwen3_moe",
    "phi-3-mini-4k": "mixtral", "phi-4-mini": "glm4_moe", "gemma-7b": "mixtral", "granite-3.1-8b": "granitemoe",
    "glm-4-9b": "glm4_moe", "olmo-2-7b": "flex_olmo", "command-r7b": "cohere2_moe", "lfm2-1.2b": "lfm2_moe",
    "ernie-4.5-0.3b": "ernie4_5_moe", "hunyuan-7b": "hunyuan_v1_moe", "qwen3-vl-8b": "qwen3_vl_moe_text",
    "qwen3.5-9b-text": "qwen3_5_moe_text", "gemma-4-text": "gemma4_text",
}.items()))  # fmt: skip
def test_the_preferred_target_of_a_known_model(name: str, target: str) -> None:
    assert match(GOLDEN[name], nothing).target.model_type == target


@pytest.mark.parametrize(("request_", "target"), [
    ({"some_layers": "--layers every:4"}, "qwen2_moe"),
    ({"leading_dense": "--layers last:4"}, "qwen2_moe"),
    ({"shared_expert": "--shared-expert"}, "qwen2_moe"),
    ({"unnormalized_gates": "gates"}, "qwen2_moe"),
    ({"no_shared_expert": "--no-shared-expert"}, "mixtral"),
])  # fmt: skip
def test_the_request_decides_among_targets(request_: dict[str, str], target: str) -> None:
    assert match(LLAMA, lambda _: request_).target.model_type == target


def refusal(config: Mapping[str, Any], request: Mapping[str, str] | None = None, **rest: Any) -> str:
    with pytest.raises(ArchitectureError) as error:
        match(config, lambda _: request or {}, **rest)
    return str(error.value)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_a_type_without_a_sparse_class_is_refused_with_its_reason(model_type: str) -> None:
    said = refusal({"model_type": model_type})
    assert f"'{model_type}' has no stock MoE class" in said
    assert UNSUPPORTED[model_type] in said
    assert model_type not in FAMILIES | WRAPPERS


@pytest.mark.parametrize("config", [
    *({"model_type": name} for name in sorted(ALREADY_SPARSE | TARGETS.keys() - FAMILIES.keys())),
    {**LLAMA, "num_local_experts": 8},
    {"model_type": "brand_new", "n_routed_experts": 64},
], ids=lambda config: config["model_type"])  # fmt: skip
def test_a_model_that_is_already_sparse_is_refused(config: dict[str, Any]) -> None:
    assert "it is already a MoE" in refusal(config)


def test_an_unknown_type_is_answered_with_the_nearest_and_the_list() -> None:
    said = refusal({"model_type": "lama"})
    assert "Did you mean 'llama'?" in said
    assert all(name in said for name in (*FAMILIES, *WRAPPERS))
    assert "splice" in said
    assert "model_type must name the model's class. Got None" in refusal({"hidden_size": 8})


def test_every_obstacle_of_every_target_is_named_and_the_nearest_one() -> None:
    said = refusal({**LLAMA, "attention_bias": True, "mlp_bias": True}, {"some_layers": "--layers every:2"})
    assert "mixtral: attention_bias = true" in said
    assert "mixtral: mlp_bias = true" in said
    assert "mixtral: --layers every:2" in said
    assert "granitemoe: mlp_bias = true" in said
    assert "Nearest: qwen2_moe, with 2 obstacles." in said


def test_biases_into_mixtral_are_refused_by_their_field() -> None:
    assert "mixtral: attention_bias = true" in refusal({**LLAMA, "attention_bias": True}, target="mixtral")
    assert match({**LLAMA, "attention_bias": True}, nothing).target.model_type == "granitemoe"


def test_a_foreign_body_is_refused_and_so_is_an_unknown_target() -> None:
    assert "norms and residuals are those of 'llama'" in refusal(LLAMA, target="flex_olmo")
    assert "the class normalises q and k" in refusal(LLAMA, target="qwen3_moe")
    assert "Did you mean 'mixtral'?" in refusal(LLAMA, target="mixtrl")


def test_all_faults_of_a_config_come_at_once_with_misspelt_keys() -> None:
    broken = {**LLAMA, "num_key_value_head": 8, "vocab_size": "many", "rms_norm_eps": True, "attention_bias": 1}
    del broken["num_key_value_heads"], broken["hidden_size"]
    said = refusal(broken)
    assert "key 'num_key_value_head' is unknown. Did you mean 'num_key_value_heads'?" in said
    assert "hidden_size must be a whole number from 1 to 2147483647. Got None." in said
    assert "vocab_size must be a whole number from 1 to 2147483647. Got 'many'." in said
    assert "rms_norm_eps must be a finite number. Got True." in said
    assert "attention_bias must be true or false. Got 1." in said


def test_a_composites_text_config_must_be_there_and_is_named() -> None:
    assert "text_config must be the config of the language model. Got None." in refusal({"model_type": "llava"})
    said = refusal({"model_type": "llava", "text_config": {**LLAMA, "vocab_size": 0}})
    assert "config.json: text_config: vocab_size must be" in said


@pytest.mark.parametrize(("name", "runtime", "words"), [
    ("mistral-7b-v0.1", "llama.cpp", "ignores the sliding window"),
    ("gemma-7b", "vllm", "SiLU"),
    ("qwen2.5-7b", "llama.cpp", "renormalises"),
    ("lfm2-1.2b", "transformers4", "new in transformers 5.0"),
])  # fmt: skip
def test_a_runtime_that_would_be_wrong_is_refused(name: str, runtime: Any, words: str) -> None:
    preferred = match(GOLDEN[name], nothing).target.model_type
    assert words in refusal(GOLDEN[name], target=preferred, runtime=runtime)


@pytest.mark.parametrize(("name", "target", "runtime", "words"), [
    ("llama-3.1-8b", "glm4_moe", "llama.cpp", "rotary factors"),
    ("phi-4-mini", "glm4_moe", "llama.cpp", "longrope"),
    ("mistral-7b-v0.1", "qwen3_moe", "llama.cpp", "sliding window"),
    ("llama-3.1-8b", "granitemoehybrid", "llama.cpp", "Mamba"),
])  # fmt: skip
def test_a_class_that_a_runtime_gets_wrong_is_refused(name: str, target: str, runtime: Any, words: str) -> None:
    assert words in refusal(GOLDEN[name], target=target, runtime=runtime)


def test_an_untied_head_lifts_what_was_refused_for_a_tied_one() -> None:
    tied = Options(experts=SparseUpcycling(), target="glm4_moe", runtime="llama.cpp")
    with pytest.raises(ArchitectureError, match="--untie"):
        prepare(GOLDEN["smollm2-135m"], tied)
    assert not prepare(GOLDEN["smollm2-135m"], replace(tied, untie=True)).config["tie_word_embeddings"]


def test_a_composite_that_a_runtime_hard_codes_is_refused_there() -> None:
    text = {**LLAMA, "model_type": "llama"}
    said = refusal({"model_type": "idefics3", "text_config": text}, runtime="vllm")
    assert "vLLM builds a LlamaModel" in said
    assert match({"model_type": "idefics3", "text_config": text}, nothing).wrapper is WRAPPERS["idefics3"]


def test_a_family_that_can_only_stand_alone_is_refused_in_a_composite() -> None:
    said = refusal({"model_type": "llava", "text_config": GOLDEN["gemma-2b"]})
    assert "mixtral: transformers 4 and 5 scale the pictures" in said
    assert match(GOLDEN["gemma-2b"], nothing).target.model_type == "mixtral"


def shape(width: int, size: int, layers: tuple[int, ...] = (0, 1, 2, 3), hidden: int = 64) -> ModelShape:
    return ModelShape(LayerSpec(4, 2, hidden, width, size, shared_expert=True), layers, 4)


@pytest.mark.parametrize(("target", "numbers", "words"), [
    ("glm4_moe", shape(96, 48), None),
    ("glm4_moe", shape(96, 40), "no multiple of 40"),
    ("hunyuan_v1_moe", shape(96, 96), None),
    ("hunyuan_v1_moe", shape(96, 48), "they are 96 and 48 neurons"),
    ("ernie4_5_moe", shape(96, 96, (1, 3)), None),
    ("ernie4_5_moe", shape(96, 96, (1, 2)), None),
    ("ernie4_5_moe", shape(96, 96, (0, 1, 3)), "not 0, 1, 3"),
    ("qwen3_vl_moe_text", shape(96, 48), None),
    ("qwen3_vl_moe_text", shape(96, 32), "square matrices"),
    ("qwen3_vl_moe_text", shape(96, 64), "square matrices"),
])  # fmt: skip
def test_limits_on_the_numbers(target: str, numbers: ModelShape, words: str | None) -> None:
    found = [obstacle for limit in TARGETS[target].limits if (obstacle := limit(numbers))]
    assert bool(found) == bool(words)
    assert all(words and words in obstacle for obstacle in found)


def test_the_limits_join_the_obstacles_once_the_numbers_are_known() -> None:
    def numbers(decoder: Decoder, target: SparseTarget) -> ModelShape:
        return ModelShape(LayerSpec(4, 2, decoder.hidden, decoder.width, 1000, shared_expert=True), (0,), 1)

    shared = {"shared_expert": "--shared-expert"}
    assert "no multiple of 1000" in refusal(LLAMA, shared, target="glm4_moe", shape=numbers)
    assert match(LLAMA, lambda _: shared, "glm4_moe").target.model_type == "glm4_moe"


@pytest.mark.parametrize(("old", "new"), [
    ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    (
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ),
    (
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    ({}, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 1.0}}),
])  # fmt: skip
def test_rotary_settings_read_the_same_in_both_spellings(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert rope_parameters(Config(old)) == rope_parameters(Config(new))


@pytest.mark.parametrize(("changes", "feature"), [
    ({"sliding_window": None}, None),
    ({"sliding_window": 512}, "window"),
    ({"sliding_window": 32768}, None),
    ({}, "window"),
])  # fmt: skip
def test_a_window_counts_only_where_it_hides_something(changes: dict[str, Any], feature: str | None) -> None:
    plain = {key: value for key, value in GOLDEN["mistral-7b-v0.1"].items() if key != "sliding_window"}
    _, decoder = read({**plain, **changes})
    assert {feature} - {None} == decoder.features.keys() & {"window", "layer_windows"}


def test_a_head_on_disk_overrules_the_config() -> None:
    _, decoder = read(GOLDEN["smollm2-135m"])
    assert decoder.tied
    untied = decoder.with_head(present=True)
    assert not untied.tied
    assert "lm_head.weight" in {stored.name for stored in FAMILIES["llama"].tensors(untied)}
    assert untied.with_head(present=False).features.keys() == decoder.features.keys()


def test_tying_survives_a_multiplier_but_not_a_folded_scale() -> None:
    _, gemma = read(GOLDEN["gemma-7b"])
    numbers = ModelShape(LayerSpec(8, 2, gemma.hidden, gemma.width, gemma.width), tuple(range(28)), 28)
    assert TARGETS["granitemoe"].configure(gemma, numbers)["tie_word_embeddings"]
    assert not TARGETS["mixtral"].configure(gemma, numbers)["tie_word_embeddings"]


def test_a_match_carries_everything_the_converter_needs() -> None:
    found = match(LLAMA, nothing)
    assert isinstance(found, Match)
    assert (found.wrapper, found.origin) == (None, "config.json")
