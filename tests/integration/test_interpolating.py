"""Tables in models: every site is found, used and given back; profiles and certificates say what happened."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.integration import pico, spliceable
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

import moesaic
from moesaic.certification.text import Text
from moesaic.checkpoints.dense import DenseCheckpoint
from moesaic.cli import run
from moesaic.convert import Options, convert
from moesaic.errors import NliError
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.interpolating import applied_to, apply, certify, choose, load, needed, restore, save
from moesaic.interpolating.stand_ins import stand_ins
from moesaic.nli import Table
from moesaic.routers.normal import Normal
from moesaic.spec import MoESpec

EXACT: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "exp": torch.exp,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
"""What takes the place of tables where nothing may change."""
CUTS = {
    "silu": (-20.36, -17.11, -8.367, -1.976, -0.2556, -0.00724, 0.00722, 0.2285, 1.582, 10.47, 65504),
    "rsqrt": (5.96e-8, 7.75e-7, 1.114e-4, 1.864e-3, 0.03003, 0.4819, 7.773, 129.75, 2406, 47456, 65504),
    "exp": (-17.34, -14, -10.5, -8, -6, -4.5, -3, -1.5, 0, 4, 11.08),
    "reciprocal": (1e-4, 0.01, 0.1, 0.5, 1, 2, 4, 8, 32, 512, 65504),
    "gelu": (-5.5, -4, -3, -2, -1, 0, 0.5, 1.5, 3, 6, 65504),
    "sigmoid": (-17, -12, -8, -5, -3, -1, 1, 3, 5, 7, 8.5),
}
"""The first two as published, the others by eye."""
ROUNDING = 2e-6
"""Of outputs, as a share of the largest: float32 sums taken in another order through four layers."""
ALL = ["activation", "attention", "router", "norm"]


@cache
def tables() -> Mapping[str, Table]:
    return {name: Table.of(name, cuts) for name, cuts in CUTS.items()}


def stock(model_type: str, **own: Any) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(model_type, **{**pico.SIZES, "num_hidden_layers": 2, **own})
    torch.manual_seed(0)
    return pico.randomize(transformers.AutoModelForCausalLM.from_config(config))


STOCK: Mapping[str, Callable[[], Any]] = {
    "llama": partial(stock, "llama"),
    "mixtral": partial(stock, "mixtral", num_local_experts=4),
    "qwen2_moe": partial(
        stock, "qwen2_moe", num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=32
    ),
    "gpt_oss": partial(stock, "gpt_oss", num_local_experts=4, head_dim=16, rope_parameters={"rope_type": "default"}),
    "gemma2": partial(spliceable.make, "gemma2", torch.float32),
    "gpt2": partial(spliceable.make, "gpt2", torch.float32),
    "t5": partial(spliceable.make, "t5", torch.float32),
    "clip": partial(spliceable.make, "clip-b32", torch.float32),
}
SITES = {
    "llama": {("norm", "rsqrt"): 5, ("attention", "scaled_dot_product_attention"): 2, ("activation", "silu"): 2},
    "mixtral": {
        ("norm", "rsqrt"): 5,
        ("attention", "scaled_dot_product_attention"): 2,
        ("activation", "silu"): 2,
        ("router", "softmax"): 2,
        ("router", "division"): 2,
    },
    "qwen2_moe": {
        ("norm", "rsqrt"): 5,
        ("attention", "scaled_dot_product_attention"): 2,
        ("activation", "silu"): 4,
        ("router", "softmax"): 2,
        ("router", "sigmoid"): 2,
    },
    "gpt_oss": {
        ("norm", "rsqrt"): 5,
        ("attention", "softmax"): 2,
        ("activation", "sigmoid"): 2,
        ("router", "softmax"): 2,
    },
    "gemma2": {
        ("norm", "rsqrt"): 9,
        ("attention", "softmax"): 2,
        ("activation", "gelu"): 2,
        ("activation", "tanh"): 3,
    },
    "gpt2": {
        ("norm", "layer_norm"): 5,
        ("attention", "scaled_dot_product_attention"): 2,
        ("activation", "gelu"): 2,
    },
    "t5": {("norm", "rsqrt"): 12, ("attention", "scaled_dot_product_attention"): 6},
    "clip": {
        ("norm", "layer_norm"): 11,
        ("attention", "scaled_dot_product_attention"): 4,
        ("activation", "sigmoid"): 4,
    },
    "bert": {
        ("norm", "layer_norm"): 6,
        ("attention", "scaled_dot_product_attention"): 2,
        ("activation", "gelu"): 5,
        ("router", "softmax"): 2,
        ("router", "division"): 2,
    },
    "vit": {
        ("norm", "layer_norm"): 5,
        ("attention", "scaled_dot_product_attention"): 2,
        ("activation", "gelu"): 4,
        ("router", "softmax"): 2,
        ("router", "division"): 2,
    },
    "whisper": {
        ("norm", "layer_norm"): 12,
        ("attention", "scaled_dot_product_attention"): 6,
        ("activation", "gelu"): 9,
        ("router", "softmax"): 4,
        ("router", "division"): 4,
    },
}
"""By the classes' source: norms, attentions, activations and routers of two layers. The last three are spliced: each
MoE layer has an activation in its experts, and the one of the model's own code is still called, on a tap's zeros."""
SPLICED = ("bert", "vit", "whisper")
every_model = pytest.mark.parametrize("name", SITES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a maker of folders with spliced MoE models."""

    @cache
    def make(name: str) -> Path:
        work = tmp_path_factory.mktemp(name)
        spliceable.save(spliceable.make(name, torch.float32), work / "dense")
        chosen = Options(MoESpec(4, 2), SparseUpcycling(), Normal(std=0.5), target="splice")
        convert(DenseCheckpoint.open(work / "dense"), work / "moe", chosen)
        return work / "moe"

    return make


@pytest.fixture
def made(folder: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda name: moesaic.load(folder(name)).float().eval() if name in SPLICED else STOCK[name]().eval()


def output(model: Any) -> torch.Tensor:
    if type(model).__name__.endswith("ForCausalLM"):
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=pico.tokens() % 60).logits
        return logits
    return spliceable.output(model)


def counted(sites: list[Any]) -> dict[tuple[str, str], int]:
    return dict(Counter((site.kind, site.call) for site in sites))


@every_model
def test_every_site_is_found_and_exact_functions_change_nothing(name: str, made: Callable[[str], Any]) -> None:
    model = made(name)
    before = output(model)
    done = apply(model, EXACT)
    assert counted(done.swapped) == SITES[name]
    after = output(model)
    assert not torch.equal(after, before)  # what computes is written in other steps
    assert_close(after, before, rtol=0, atol=ROUNDING * float(before.abs().max()))
    done.restore()
    assert torch.equal(output(model), before)
    assert applied_to(model) is None


@every_model
def test_every_site_uses_its_tables(name: str, made: Callable[[str], Any]) -> None:
    model = made(name)
    done = apply(model, EXACT)
    with done.profiled() as profiles:
        output(model)
    assert {key for key, profile in profiles.items() if profile.count} == {
        (site.path, table) for site in done.swapped for table in site.tables
    }


@pytest.mark.parametrize("name", ["qwen2_moe", "whisper"])
@pytest.mark.parametrize("kind", ALL)
def test_a_wrong_function_shows_in_each_kind_alone(name: str, kind: Any, made: Callable[[str], Any]) -> None:
    model = made(name)
    before = output(model)
    wrong = {function: lambda x, right=right: 1.1 * right(x) for function, right in EXACT.items()}
    done = apply(model, {**wrong, "reciprocal": torch.reciprocal}, [kind])
    assert {site.kind for site in done.swapped} == {kind}
    others = {site.kind for site in done.alone if site.alone == "not chosen"}
    assert others == {"activation", "attention", "router", "norm"} - {kind}
    if kind in ("activation", "norm"):
        assert float((output(model) - before).abs().max()) > 0.01 * float(before.abs().max())
    else:  # a factor of exp cancels in a softmax; one of its reciprocal does not
        done.tables["reciprocal"] = lambda x: 0.8 / x
        assert float((output(model) - before).abs().max()) > 0.01 * float(before.abs().max())


def test_tables_are_near_and_the_same_bits_each_time(made: Callable[[str], Any]) -> None:
    model = made("qwen2_moe")
    before = output(model)
    apply(model, tables())
    after = output(model)
    assert torch.equal(after, output(model))
    # 3 %: cuts by eye are off by up to 0.1 %, random weights amplify that, and a token may change its expert.
    assert_close(after, before, rtol=0, atol=0.03 * float(before.abs().max()))


def test_a_copy_keeps_its_own_tables(made: Callable[[str], Any]) -> None:
    model = made("mixtral")
    before = output(model)
    done = apply(model, tables())
    copied = copy.deepcopy(model)
    after = output(model)
    done.restore()
    assert torch.equal(output(model), before)
    assert torch.equal(output(copied), after)
    assert torch.equal(output(restore(copied)), before)


def test_paused_is_as_before_and_an_error_leaves_nothing(made: Callable[[str], Any]) -> None:
    model = made("gpt2")
    before = output(model)
    done = apply(model, EXACT)
    after = output(model)
    with done.paused():
        assert torch.equal(output(model), before)
    assert torch.equal(output(model), after)
    with pytest.raises(IndexError):
        model(input_ids=torch.tensor([[1000]]))
    x = torch.linspace(-3, 3, 7)
    done.tables["gelu_tanh"] = torch.zeros_like
    assert_close(functional.gelu(x, approximate="tanh"), EXACT["gelu_tanh"](x), rtol=0, atol=0)  # outside the model


def test_tables_go_with_a_cache(made: Callable[[str], Any]) -> None:
    model = made("llama")
    asked: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    want = model.generate(pico.tokens(8), **asked)
    apply(model, EXACT)
    assert_close(model.generate(pico.tokens(8), **asked), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.ones(5, 7, dtype=torch.bool).tril(1)},
        {"attn_mask": torch.linspace(-3, 3, 35).reshape(5, 7)},
        {"attn_mask": torch.full((5, 7), torch.finfo(torch.float32).min).triu(2)},
        {"attn_mask": torch.ones(5, 7, dtype=torch.bool).tril(-1)},  # nothing to be seen by the first
    ],
)
def test_attention_means_what_it_means_to_torch(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    ours = stand_ins()[functional.scaled_dot_product_attention].compute

    def look(name: str, x: torch.Tensor, _real: Any = None) -> torch.Tensor:
        return EXACT[name](x.clamp(min=2.0**-24) if name == "reciprocal" else x)  # tables clamp, too

    want = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True, **how)
    # a few sums of float32 in another order
    assert_close(ours(look, query, key, value, enable_gqa=True, **how), want, rtol=1e-5, atol=1e-6)


class Small(nn.Module):
    """One norm by hand and one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(2, eps=0.0)
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.norm(x))
        return y


def test_a_profile_is_what_was_asked() -> None:
    model = Small()
    x = torch.tensor([[3.0, 4.0], [0.3e-3, 0.4e-3], [3e3, 4e3]])  # mean squares 12.5, 1.25e-7, 1.25e7
    done = apply(model, tables(), ["norm", "activation"], inputs={"x": x})
    with done.profiled() as profiles:
        model(x)
    norm, act = profiles["norm", "rsqrt"], profiles["act", "silu"]
    assert (norm.count, norm.outside, norm.unsafe) == (3, 1, 2)  # 1.25e7 is clamped, and 1.25e-7 is under 1e-6
    assert_close(torch.tensor([norm.least, norm.greatest]), torch.tensor([1.25e-7, 1.25e7]), rtol=1e-6, atol=0)
    assert dict(norm.octaves) == {-23: 1, 3: 1, 23: 1}
    assert (act.count, act.outside, act.unsafe) == (6, 0, 0)
    text = norm.warning(tables()["rsqrt"])
    assert text.startswith("norm: inputs of rsqrt must lie where its table is accurate, 1e-06 to 6.55e+04. Got 67 %")
    assert "range reduction" in text
    assert not act.warning(tables()["silu"])


def test_range_reduction_is_of_float32() -> None:
    reduced = Table.of("rsqrt", [1, 1.1, 1.25, 1.5, 1.75, 2, 2.3, 2.7, 3, 3.5, 4], reduction="rsqrt")
    model = Small()
    x = torch.tensor([[3e-6, 4e-6], [3.0, 4.0], [3e6, 4e6]])  # mean squares from 1e-11 to 1e13, beyond FP16
    want = model(x)
    done = apply(model, {"rsqrt": reduced}, ["norm"], inputs={"x": x})
    with done.profiled() as profiles:
        found = model(x)
    assert_close(found, want, rtol=2e-3, atol=0)  # FP16 rounds input and value, and the table has ten intervals
    seen = profiles["norm", "rsqrt"]
    assert (seen.count, seen.outside, seen.unsafe, seen.warning(reduced)) == (3, 0, 0, "")


def test_a_certificate_says_what_changed(tmp_path: Path) -> None:
    model = pico.save_text(tmp_path / "dense", "llama", num_hidden_layers=2)
    done = apply(model, tables())
    found = certify(tmp_path / "dense", done, max_tokens=64)
    ids = torch.tensor(Text.read(tmp_path, None, 64, 128).sequences)  # random ids, there is no tokenizer
    with torch.no_grad():
        after = model(input_ids=ids).logits.double()
        with done.paused():
            before = model(input_ids=ids).logits.double()
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    losses = [float(functional.cross_entropy(x[:, :-1].flatten(0, 1), ids[:, 1:].flatten())) for x in (before, after)]
    assert found.tokens == 64
    assert kl > 0
    assert_close(found.kl, kl, rtol=5e-3, atol=0)  # three figures
    assert_close([found.loss, found.loss_with], losses, rtol=0, atol=1e-6)  # six digits
    assert_close(found.perplexity_change, 100 * math.expm1(losses[1] - losses[0]), rtol=0, atol=1e-4)
    assert [row["layer"] for row in found.layers] == ["model.layers.0", "model.layers.1"]
    assert all(0 < row["error"] < 0.01 and row["cosine"] > 0.9999 for row in found.layers)
    assert counted([site for site in found.sites if site.swapped]) == SITES["llama"]
    assert {(each.path, each.table) for each in found.profiles} == {
        (site.path, name) for site in done.swapped for name in site.tables
    }
    again = json.loads(json.dumps(found.to_json()))
    assert again["summary"]["left alone"].startswith("1 cos (no table takes its place)")


def test_exact_functions_have_a_clean_certificate(folder: Callable[[str], Path], made: Callable[[str], Any]) -> None:
    for name in SPLICED:
        model = made(name)
        found = certify(folder(name), apply(model, EXACT), max_tokens=32)
        assert found.loss is None
        assert found.max_diff <= ROUNDING * found.max_value
        assert all(row["error"] < 1e-5 for row in found.layers)
        assert len(found.layers) == (4 if name == "whisper" else 2)
        assert not found.warnings


def test_a_file_applies_the_same_again(tmp_path: Path, made: Callable[[str], Any]) -> None:
    model = made("qwen2_moe")
    done = apply(model, tables(), ["activation", "router"], straight_through=True)
    after = output(model)
    save(done, tmp_path / "nli.json")
    done.restore()
    again = load(model, tmp_path / "nli.json")
    assert torch.equal(output(model), after)
    assert (again.which, again.straight_through) == (done.which, True)
    again.restore()
    with pytest.raises(NliError, match=r"sites must be those of MixtralForCausalLM"):
        load(made("mixtral"), tmp_path / "nli.json")
    (tmp_path / "other.json").write_text('{"schema": "moesaic.nli.model/1"}')
    with pytest.raises(NliError, match=r"other.json: it must be what"):
        load(model, tmp_path / "other.json")
    assert applied_to(model) is None
    with pytest.raises(NliError, match=r"must be tables. Got other functions for silu"):
        save(apply(model, {**tables(), "silu": functional.silu}), tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()


@pytest.mark.parametrize("name", ["qwen2_moe", "bert"])
def test_gradients_are_those_of_the_exact_functions(name: str, made: Callable[[str], Any]) -> None:
    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model.train()  # no dropout in either, and checkpointing runs in training only
        ids = pico.tokens() % 60
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model = made(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    want = gradients(model)
    done = apply(model, EXACT)
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found = gradients(model)
        assert found.keys() == want.keys()
        for key, gradient in found.items():
            # float32 sums in another order, backward through two layers
            assert_close(gradient, want[key], rtol=0, atol=1e-4 * float(want[key].abs().max()) + 1e-7)
    done.tables["silu" if name == "qwen2_moe" else "gelu"] = lambda x: 0 * x
    found = gradients(model)
    assert any(not torch.allclose(found[key], want[key], rtol=0.1) for key in found if "down_proj" in key)


def test_a_model_with_tables_trains(made: Callable[[str], Any]) -> None:
    model = made("mixtral").train()
    apply(model, tables(), straight_through=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = pico.tokens()
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_what_can_not_be_done_is_told(made: Callable[[str], Any]) -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    x = {"input": torch.ones(1, 2)}
    with pytest.raises(
        NliError, match=r"Sequential: it must have a site of these kinds: activation, .*Got none of any"
    ):
        apply(plain, EXACT, inputs=x)
    assert "forward" not in vars(plain)
    with pytest.raises(NliError, match="isn't of transformers must be given inputs"):
        apply(plain, EXACT)
    model = made("llama")
    with pytest.raises(NliError, match=r"these kinds: router. Got sites of activation, attention, norm"):
        apply(model, EXACT, ["router"])
    with pytest.raises(NliError, match=r"Got 'norms'. Did you mean 'norm'\?"):
        apply(model, EXACT, ["norms"])  # type: ignore[list-item]
    with pytest.raises(NliError, match=r"must have a table. Got exp.*\n  - rsqrt, for model\.layers\.0.*\n  - silu"):
        apply(model, {"exp": torch.exp, "reciprocal": torch.reciprocal})
    with pytest.raises(NliError, match="tables must be applied to be taken out"):
        restore(model)
    apply(model, EXACT)
    with pytest.raises(NliError, match="must not have tables yet"):
        apply(model, EXACT)
    restore(model).config._attn_implementation_internal = "flex_attention"
    with pytest.raises(NliError, match=r"Got flex_attention. Load it with attn_implementation='sdpa'"):
        apply(model, EXACT)


def test_what_is_needed_is_asked_for_first(made: Callable[[str], Any]) -> None:
    model = made("qwen2_moe")
    assert set(needed(model)) == {"silu", "exp", "reciprocal", "rsqrt", "sigmoid"}
    assert needed(model, ["norm"]) == ("rsqrt",)
    assert applied_to(model) is None


@pytest.mark.parametrize("source", ["uniform", "curvature"])
def test_baselines_are_chords_between_fp16_numbers(source: str) -> None:
    tanh = choose(source, ["tanh"])["tanh"]
    x = torch.linspace(-3, 3, 61, requires_grad=True)
    y = tanh(x)
    assert torch.equal(y, y.half().float())
    assert_close(y, x.tanh(), rtol=0, atol=2e-3)  # 258 chords over nine units, and FP16
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert_close(slope, 1 - x.detach().tanh() ** 2, rtol=0, atol=0.03)  # a chord's slope is that of its middle
    with torch.no_grad():
        assert torch.equal(tanh(x), y)
    wide = torch.tensor([1e-9, 0.3, 1e9])
    rsqrt = choose(source, ["rsqrt"], range_reduction=True)["rsqrt"]
    assert_close(rsqrt(wide), wide.rsqrt(), rtol=1e-3, atol=0)  # FP16 rounds input and value


def test_choosing_tells_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NliError, match=r"folder, or one of nli, uniform, .*Got '.*nowhere'"):
        choose(tmp_path / "nowhere", ["silu"])
    with pytest.raises(NliError, match=r"silu.json: the table must exist"):
        choose(tmp_path, ["silu"])
    (tmp_path / "silu.json").write_text(json.dumps(tables()["exp"].to_json()))
    with pytest.raises(NliError, match=r"it must be a table of silu. Got exp, range reduction none"):
        choose(tmp_path, ["silu"])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = pico.save_text(tmp_path / "dense", "llama", num_hidden_layers=2)
    asked = ["nli", "apply", str(tmp_path / "dense"), "--max-tokens", "64"]
    more = ["--range-reduction", "--save", str(tmp_path / "nli.json"), "--out", str(tmp_path / "record.json")]
    assert run([*asked, *more, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "record.json").read_text())
    assert abs(said["perplexity_change"]) < 0.1
    assert said["warnings"] == []
    load(model, tmp_path / "nli.json")
    found = certify(tmp_path / "dense", applied_to(model) or pytest.fail("no tables"), max_tokens=64)
    assert found.loss_with == said["loss_with"]
    assert run([*asked, "--which", "norm"]) == 0
    assert "norm, by tables" in (shown := capsys.readouterr().out)
    assert "scaled_dot_product_attention (not chosen)" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (
            ["--which", "router"],
            1,
            "have a site of these kinds: router. Got sites of activation, attention, norm",
        ),
        (["--tables", "uniforn"], 1, "tables must be a folder, or one of nli, uniform"),
        (["--max-tokens", "1"], 2, "--max-tokens: it must be 2 or more. Got 1."),
    ],
)
def test_the_command_line_tells(
    args: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pico.save_text(tmp_path / "dense", "llama", num_hidden_layers=1)
    assert run(["nli", "apply", str(tmp_path / "dense"), *args]) == code
    assert says in capsys.readouterr().err


def test_subcommands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["nli"]) == 0
    assert "apply" in capsys.readouterr().out
    assert run(["nli", "aply"]) == 2
    assert "no subcommand 'aply'. Did you mean 'apply'?" in capsys.readouterr().err
