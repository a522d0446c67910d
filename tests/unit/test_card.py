"""The model card: metadata the hub reads, tables that render, a command that repeats the conversion."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import ModelCard

from moesaic.checkpoints.sources import cache
from moesaic.checkpoints.sources.named import MODELS
from moesaic.cli.options import UpcycleOptions, parse
from moesaic.convert import Options, prepare
from moesaic.convert.card import command_line, model_card
from moesaic.convert.metadata import PIPELINES, carried
from moesaic.experts.drop_upcycling import DropUpcycling
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.experts.spri import Spri
from moesaic.routers.orthogonal import Orthogonal
from moesaic.routers.uniform import Uniform
from moesaic.spec import Layers, MoESpec

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip
SUMMARY = {"KL(dense || MoE)": "0.1 nats per token", "text": "a | b"}
SOME = Options(MoESpec(8, 2, layers=Layers("every:2")))


def card(folder: Path, options: Options = SOME, name: str = "org/dense@main", **record: Any) -> str:
    conversion = prepare(LLAMA, options)
    made = {
        "moesaic": "1.0",
        "source": {"name": name, "model_type": "llama", "sha256": {"model.safetensors": "ab12"}},
        "target": conversion.match.target.model_type,
        "experts": {"method": options.experts.name()},
        "seed": options.seed,
        "certificate": {"summary": SUMMARY},
    }
    return model_card(conversion, {**made, **record}, folder)


def front(text: str) -> dict[str, Any]:
    """Return the metadata as the hub's own library reads them."""
    return ModelCard(text).data.to_dict()


def test_the_hub_learns_where_the_model_comes_from(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: llama3.2\nlicense_link: https://example.org/LICENSE\ntags:\n- chat\nlanguage:\n- en\n"
        "datasets: secret\n---\n# license: other\n"
    )
    assert front(card(tmp_path)) == {
        "license": "llama3.2",
        "license_link": "https://example.org/LICENSE",
        "language": ["en"],
        "base_model": "org/dense",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moe", "mixture-of-experts", "upcycling", "moesaic", "spri"],
    }


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    found = front(card(tmp_path, name="my-model"))
    assert "license" not in found
    assert "base_model" not in found


@pytest.mark.parametrize("name", ["smollm2-135m", "minilm-l6", "whisper-base"])
def test_models_out_of_packages_are_filed_under_their_name_on_the_hub(tmp_path: Path, name: str) -> None:
    found = front(card(cache.folder(MODELS[name].key(name)), name=name))
    assert (found["license"], found["base_model"]) == (MODELS[name].licence.lower(), MODELS[name].hub)
    assert not {"license", "base_model"} & front(card(tmp_path / name, name=name)).keys()  # a folder of that name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# No front matter\n",
        "---\nlicense: mit\n",
        "---\nlicense:\n  name: mit\n---\n",
        "---\nlicense: [\n---\n",
        "---\n- license\n---\n",
        "---\n" + "[" * 50_000 + "\n---\n",
        "---\na: &a [x, x]\nlanguage: [*a, *a]\n---\n",
    ],
)
def test_a_card_that_says_no_licence_gives_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert carried(tmp_path) == {}


def test_a_card_with_windows_line_ends_is_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\r\nlicense: mit\r\n---\r\ntext\r\n")
    assert carried(tmp_path) == {"license": "mit"}


def test_norwegian_is_no_truth_value(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage: no\nlicense: 1.0\n---\n")
    found = front(card(tmp_path))
    assert (found["language"], found["license"]) == ("no", "1.0")


def test_a_stranger_s_words_stay_in_their_place(tmp_path: Path) -> None:
    evil = "mit\n---\n# <script>"
    (tmp_path / "README.md").write_text(f"---\nlicense: {json.dumps(evil)}\n---\n")
    text = card(tmp_path)
    assert front(text)["license"] == evil
    assert front(text)["library_name"] == "transformers"


def test_pipelines_are_of_classes_that_load_models() -> None:
    assert all(isinstance(getattr(transformers, name), type) for name in PIPELINES)


def test_every_row_of_the_table_has_two_cells(tmp_path: Path) -> None:
    rows = [line for line in card(tmp_path).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(SUMMARY)
    assert {line.replace("\\|", "").count("|") for line in rows} == {3}


def test_the_card_says_what_a_token_uses(tmp_path: Path) -> None:
    text = card(tmp_path)
    expert, layers = 3 * 64 * 96, 2
    whole = sum(output.info.count for output in prepare(LLAMA, SOME).plan.outputs)
    assert f"{whole / 1e6:.1f} million parameters" in text
    assert f"a token uses {(whole - 6 * layers * expert) / 1e6:.1f} million" in text
    assert "8 experts of 96 neurons, top-2, beside an always-on shared expert of 96, in layers 1, 3 of 4" in text


def test_the_load_balancing_loss_is_offered_where_the_class_has_it(tmp_path: Path) -> None:
    assert "output_router_logits = True" in card(tmp_path)
    assert "output_router_logits" not in card(
        tmp_path, dataclasses.replace(SOME, target="glm4_moe", spec=MoESpec(8, 2))
    )


def test_no_certificate_is_said(tmp_path: Path) -> None:
    assert "Not certified: converted with `--no-certify`." in card(tmp_path, certificate=None)


def test_the_card_is_the_same_twice_and_names_no_folder(tmp_path: Path) -> None:
    assert card(tmp_path) == card(tmp_path)
    assert str(tmp_path) not in card(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        SOME,
        Options(MoESpec(4, 1, expert_size=32, shared_expert=False, layers=Layers("0,2")), SparseUpcycling(), seed=3),
        Options(MoESpec(shared_expert=True), DropUpcycling(ratio=0.25, index_mode="per_matrix"), Orthogonal()),
        Options(experts=Spri(rho=0.01), router=Uniform(), target="qwen2_moe", runtime="vllm", dtype="BF16", untie=True),
    ],
)
def test_the_command_repeats_the_conversion(options: Options) -> None:
    command = command_line(options, "org/dense")
    assert command is not None
    name, sub, *words = shlex.split(command)
    assert (name, sub) == ("moesaic", "upcycle")
    parsed, experts, router = parse("upcycle", UpcycleOptions, words)
    assert (parsed.source, str(parsed.out)) == ("org/dense", "OUT")
    assert parsed.conversion(experts, router) == options


class OwnMethod(Spri):
    """Not one that the command line knows."""


def test_what_the_command_line_cannot_say_has_no_command(tmp_path: Path) -> None:
    assert command_line(Options(experts=OwnMethod()), "x") is None
    assert command_line(Options(MoESpec(normalize_gates=False)), "x") is None
    assert "with a method or gates of its own" in card(tmp_path, Options(experts=OwnMethod()))
