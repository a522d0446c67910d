"""Methods that learn from data, from the model's folder to one that loads: the way `upcycle --data` goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tests.integration.calibrating import VOCAB, save_tokenizer, texts
from torch.testing import assert_close

import moesaic
from moesaic.checkpoints.dense import read_json
from moesaic.cli import run
from moesaic.errors import CalibrationError, PlanError
from moesaic.experts.activation_split import ActivationSplit
from moesaic.experts.base import ExpertInit
from moesaic.experts.cluster_aware import ClusterAware
from moesaic.experts.gradient_split import GradientSplit
from moesaic.experts.partition import Partition
from moesaic.experts.sparse_upcycling import SparseUpcycling
from moesaic.modeling.dense_ffn import dense_ffn
from moesaic.modeling.tracing import find
from moesaic.routers.base import RouterInit
from moesaic.routers.centroids import Centroids
from moesaic.routers.coactivation import Coactivation
from moesaic.routers.prompts import Prompts
from moesaic.routers.ridge import Ridge
from moesaic.routers.zeros import Zeros
from moesaic.seeds import Stream
from moesaic.spec import MoESpec
from moesaic.stats.clusters import Clusters

SIZES = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def save(folder: Path, model: transformers.PreTrainedModel) -> Path:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
            p.copy_(drawn * p.shape[-1] ** -0.5 if p.ndim > 1 else 1 + 0.1 * drawn)
    model.save_pretrained(folder)
    save_tokenizer(folder, bert=isinstance(model, transformers.BertModel))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(vocab_size=VOCAB, num_key_value_heads=1, max_position_embeddings=64, **SIZES)
    return save(tmp_path_factory.mktemp("informed") / "llama", transformers.LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.BertConfig(vocab_size=VOCAB, max_position_embeddings=32, **SIZES)
    return save(tmp_path_factory.mktemp("informed") / "bert", transformers.BertModel(config).double())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of texts, one sub-folder for each of four labels."""
    folder = tmp_path_factory.mktemp("informed") / "data"
    for number, text in enumerate(texts(96)):
        (folder / str(number % 4)).mkdir(parents=True, exist_ok=True)
        (folder / str(number % 4) / f"{number}.txt").write_text(text)
    return folder


def output(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(4, 19, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        said = model(input_ids=ids)
    found: torch.Tensor = said["logits"] if "logits" in said else said["last_hidden_state"]
    return found


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_experts_on_disk_are_those_of_the_statistics(
    kind: str, tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    """A stock class and a spliced one hold what the method makes of what `moesaic.calibrate` saw."""
    source = request.getfixturevalue(kind)
    experts, router, spec = ClusterAware(tau=0.9), Centroids(), MoESpec(4, 2)
    seen = moesaic.calibrate(source, data, experts, router, spec=spec)
    made = moesaic.upcycle(source, tmp_path / "moe", spec, experts=experts, router=router, data=data, certify=False)
    dense, moe = moesaic.load(source), moesaic.load(tmp_path / "moe")
    state = moe.state_dict()
    where = {
        "llama": "model.layers.{}.mlp.experts.gate_up_proj",
        "bert": "encoder.layer.{}.output.dense.experts.up_proj",
    }[kind]
    for number, site in enumerate(find(dense.config, type(dense)).sites):
        layer = made.conversion.layers[number]
        stream = Stream(0).child("cluster_aware", number)
        want = torch.stack([e.up for e in experts.experts(dense_ffn(dense, site), layer, stream, seen.seen(site))])
        stored = state[where.format(number)][:, -want.shape[1] :]  # gate rows come first
        assert_close(stored, want.to(stored.dtype), rtol=1e-6, atol=1e-7)  # written in the checkpoint's dtype
    assert (tmp_path / "moe" / "moesaic.json").read_text().count('"sha256"') >= 2  # of the weights, of the data


@pytest.mark.parametrize(
    ("experts", "router"),
    [
        (ClusterAware(), Centroids()),
        (SparseUpcycling(), Ridge()),
        (SparseUpcycling(), Prompts()),
        (SparseUpcycling(), Prompts(mode="embedding")),
        (ActivationSplit(), Coactivation()),
        (ActivationSplit(clusters="inputs"), Centroids()),
        (GradientSplit(), Coactivation()),
        (Partition(split="balanced_kmeans"), Coactivation()),
    ],
    ids=lambda m: m.name(),
)
def test_every_method_that_sees_data_gives_a_model_that_loads(
    experts: ExpertInit, router: RouterInit, tmp_path: Path, llama: Path, data: Path
) -> None:
    made = moesaic.upcycle(llama, tmp_path / "moe", MoESpec(4, 2), experts=experts, router=router, data=data)
    assert made.certificate is not None
    assert output(moesaic.load(tmp_path / "moe")).isfinite().all()
    record = read_json(tmp_path / "moe" / "moesaic.json")
    assert record["calibration"]["origin"]["data"] == "data"
    assert record["calibration"]["tokens"] > 500


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize(
    "experts", [ActivationSplit(), GradientSplit(), Partition(split="balanced_kmeans")], ids=lambda m: m.name()
)
def test_a_split_is_the_dense_model_with_all_experts_on(
    kind: str, experts: ExpertInit, tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "bert" and isinstance(experts, GradientSplit):
        pytest.skip("an encoder has no language model's loss")
    source = request.getfixturevalue(kind)
    learned = None if isinstance(experts, Partition) else data
    moesaic.upcycle(
        source, tmp_path / "moe", MoESpec(4, 4), experts=experts, router=Zeros(), data=learned, certify=False
    )  # a router of zeros and top-4 of 4: every expert with the same gate
    want = output(moesaic.load(source))
    bound = 1e-10 if kind == "bert" else 1e-5 * float(want.abs().max())  # float64; float32
    assert_close(output(moesaic.load(tmp_path / "moe")), want, rtol=0, atol=bound)


def test_a_file_of_statistics_gives_the_same_bytes_as_the_data(tmp_path: Path, llama: Path, data: Path) -> None:
    methods = ["--experts", "cluster_aware", "--router", "centroids", "--num-experts", "4"]
    file = tmp_path / "seen.safetensors"
    assert run(["calibrate", str(llama), "--data", str(data), "--out", str(file), *methods]) == 0
    for name, given in (("a", ["--data", str(data)]), ("b", ["--stats", str(file)])):
        assert run(["upcycle", str(llama), str(tmp_path / name), *methods, *given, "--no-certify"]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_rows_do_as_well_as_files(tmp_path: Path, llama: Path) -> None:
    rows = texts(96)
    made = moesaic.upcycle(llama, tmp_path / "moe", MoESpec(4, 2), experts=ClusterAware(), data=rows)
    assert made.certificate is not None
    again = moesaic.certify(llama, tmp_path / "moe", data=rows)
    assert again == made.certificate
    once = iter(texts(96))
    moesaic.upcycle(llama, tmp_path / "once", MoESpec(4, 2), experts=ClusterAware(), data=once)


class TestRefusals:
    def left_nothing(self, out: Path) -> bool:
        return not list(out.parent.glob(f"{out.name}*"))

    def test_no_data(self, tmp_path: Path, llama: Path) -> None:
        out = tmp_path / "moe"
        with pytest.raises(PlanError, match=r"cluster_aware .* Got no data. Pass --data"):
            moesaic.upcycle(llama, out, MoESpec(4, 2), experts=ClusterAware())
        assert self.left_nothing(out)

    def test_statistics_of_another_model(self, tmp_path: Path, llama: Path, bert: Path, data: Path) -> None:
        file, out = tmp_path / "seen.safetensors", tmp_path / "moe"
        moesaic.calibrate(bert, data, statistics=[Clusters(4)], out=file)
        with pytest.raises(CalibrationError, match=r"the statistics must be of the model that is upcycled, llama"):
            moesaic.upcycle(llama, out, MoESpec(4, 2), experts=ClusterAware(), stats=file)
        assert self.left_nothing(out)

    def test_statistics_for_another_number_of_experts(self, tmp_path: Path, llama: Path, data: Path) -> None:
        file, out = tmp_path / "seen.safetensors", tmp_path / "moe"
        moesaic.calibrate(llama, data, statistics=[Clusters(2)], out=file)
        with pytest.raises(CalibrationError, match=r"clusters: the method needs this statistic"):
            moesaic.upcycle(llama, out, MoESpec(4, 2), experts=ClusterAware(), stats=file)
        assert self.left_nothing(out)

    def test_less_data_than_clusters_need(self, tmp_path: Path, llama: Path) -> None:
        (tmp_path / "short.txt").write_text("the red fox runs")
        out = tmp_path / "moe"
        with pytest.raises(CalibrationError, match=r"clusters: the data must have at least .* tokens"):
            moesaic.upcycle(llama, out, MoESpec(4, 2), experts=ClusterAware(), data=tmp_path / "short.txt")
        assert self.left_nothing(out)

    def test_a_place_that_is_taken_before_the_data_are_read(self, tmp_path: Path, llama: Path, data: Path) -> None:
        (tmp_path / "moe").mkdir()
        (tmp_path / "moe" / "mine").write_text("kept")
        assert (
            run(["upcycle", str(llama), str(tmp_path / "moe"), "--experts", "cluster_aware", "--data", str(data)]) == 1
        )
        assert (tmp_path / "moe" / "mine").read_text() == "kept"


def test_thin_data_and_parallel_rows_are_said(
    tmp_path: Path, llama: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["--experts", "cluster_aware", "--router", "centroids", "--num-experts", "4"]
    out = str(tmp_path / "moe")
    assert run(["upcycle", str(llama), out, *methods, "--data", str(data), "--no-certify", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["folder"] == out
    concerns = read_json(tmp_path / "moe" / "moesaic.json")["calibration"]["concerns"]
    assert any("the data should have more tokens" in line for line in concerns)
    assert " ".join(concerns[-1].split()) in " ".join(said.err.split())
