"""The certificate's numbers against cases whose result is known by construction."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from moesaic.certification import by_layer, tally
from moesaic.certification.certificate import Certificate, figures
from moesaic.certification.diversity import mean_distance
from moesaic.certification.tally import LayerTally, Tally
from moesaic.certification.text import PIECE, Batch, Text
from moesaic.errors import CertificateError
from moesaic.routing import Routing

LN = torch.log


def counted(dense_TV: torch.Tensor, moe_TV: torch.Tensor, ids: list[int] | None = None) -> Tally:
    made = Tally()
    made.logits(dense_TV, moe_TV, torch.tensor(ids or [0] * len(dense_TV)))
    return made


def test_identical_models_differ_in_nothing() -> None:
    logits_TV = torch.randn(7, 31)
    same = counted(logits_TV, logits_TV)
    assert (same.kl.value, same.max_logit_diff, same.agreement.value) == (0.0, 0.0, 1.0)
    assert same.dense_loss.value == same.moe_loss.value


def test_kl_is_that_of_the_dense_model_to_the_moe() -> None:
    p, q = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert_close(counted(LN(p), LN(q)).kl.value, expected, rtol=1e-6, atol=0)
    assert abs(counted(LN(q), LN(p)).kl.value - expected) > 0.1


def test_a_constant_on_all_logits_moves_them_and_nothing_else() -> None:
    dense_TV = torch.randn(5, 16, dtype=torch.float64).float()
    moved = counted(dense_TV, dense_TV + 2.0)
    assert_close(moved.max_logit_diff, 2.0, rtol=1e-6, atol=0)
    assert moved.agreement.value == 1.0
    assert abs(moved.kl.value) < 1e-12


def test_a_tiny_change_has_the_kl_of_its_variance() -> None:
    """KL = Var_p(delta) / 2 to first order; float32 would drown it."""
    logits_TV, delta_TV = torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 1.0, -1.0]]) * 2**-20
    assert_close(counted(logits_TV, logits_TV + delta_TV).kl.value, 2**-41, rtol=1e-5, atol=0)


def test_agreement_takes_ties_as_agreeing() -> None:
    dense_TV = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    moe_TV = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert_close(counted(dense_TV, moe_TV).agreement.value, 2 / 3)


def test_loss_is_of_the_next_token() -> None:
    probs_TV = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    made = counted(LN(probs_TV), LN(probs_TV), [2, 0, 1])
    assert_close(made.dense_loss.value, -(math.log(0.5) + math.log(0.8)) / 2, rtol=1e-6, atol=0)
    assert made.dense_loss.count == 2


def test_numbers_do_not_depend_on_how_logits_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    dense_TV, moe_TV, ids = torch.randn(9, 12), torch.randn(9, 12), [3, 1, 4, 1, 5, 9, 2, 6, 5]
    whole = counted(dense_TV, moe_TV, ids)
    monkeypatch.setattr(tally, "CHUNK", 24)
    parts = counted(dense_TV, moe_TV, ids)
    for name in ("kl", "agreement", "dense_loss", "moe_loss"):
        assert_close(getattr(parts, name).value, getattr(whole, name).value)
    assert (parts.max_logit_diff, parts.max_logit) == (whole.max_logit_diff, whole.max_logit)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_are_no_agreement(bad: float) -> None:
    good_TV, bad_TV = torch.zeros(3, 4), torch.zeros(3, 4)
    bad_TV[1, 2] = bad
    with pytest.raises(CertificateError, match="The MoE model: logits must be finite"):
        counted(good_TV, bad_TV)
    with pytest.raises(CertificateError, match="The dense model: logits must be finite"):
        counted(bad_TV, good_TV)


def test_layer_outputs_have_the_cosine_and_norm_ratio_of_their_tokens() -> None:
    layer = LayerTally()
    layer.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 1.0]]))
    assert_close((layer.cosine.value, layer.norm_ratio.value), (0.5, 2.0))


def test_zero_vectors_are_equal_to_each_other_and_to_nothing_else() -> None:
    layer = LayerTally()
    layer.add(torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert_close(layer.cosine.value, 1 / 3)
    assert_close(layer.norm_ratio.value, 0.5)  # 1 and 0; a ratio to zero is none


@pytest.mark.parametrize(
    ("logits", "entropy", "top1"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1.0, 0.25),
        ([60.0, 0.0, 0.0, 0.0], 0.0, 1.0),
        ([0.0, 0.0, -200.0, -200.0], 0.5, 0.5),
    ],
)
def test_router_entropy_is_a_share_of_ln_e(logits: list[float], entropy: float, top1: float) -> None:
    layer = LayerTally()
    layer.route(Routing.from_logits(torch.tensor([logits] * 3), 1))
    assert_close((layer.entropy.value, layer.top1.value), (entropy, top1), rtol=1e-6, atol=1e-12)


def test_a_sigmoid_router_is_normalised_for_its_entropy_only() -> None:
    layer = LayerTally()
    layer.route(Routing.from_logits(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), 2, score="sigmoid"))
    assert_close((layer.entropy.value, layer.top1.value), (1.0, 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("top_k", "favoured", "cv"), [(1, 1, math.sqrt(3)), (2, 2, 1.0), (4, 4, 0.0)])
def test_load_cv_is_known_where_all_tokens_choose_alike(top_k: int, favoured: int, cv: float) -> None:
    layer = LayerTally()
    for _ in range(2):
        layer.route(Routing.from_logits(torch.tensor([[1.0] * favoured + [0.0] * (4 - favoured)] * 5), top_k))
    assert layer.load_E is not None
    assert int(layer.load_E.sum()) == 10 * top_k
    assert_close(layer.load_cv, cv)


def test_diversity_of_known_experts() -> None:
    a, b = torch.eye(4)[:2].reshape(2, 2, 2)
    assert_close(mean_distance([a, b]), 1.0)
    assert_close(mean_distance([a, a, a]), 0.0, rtol=0, atol=1e-12)
    assert_close(mean_distance([a, -a]), 2.0)
    assert_close(mean_distance([a, a, b, b]), 1 - 2 / 6)
    assert_close(mean_distance([a, 1e-20 * a]), 0.0, rtol=0, atol=1e-6)


def test_zero_experts_are_like_nothing() -> None:
    zero, some = torch.zeros(2, 3), torch.ones(2, 3)
    assert mean_distance([zero, zero]) == 1.0
    assert_close(mean_distance([zero, some, some]), 1 - 1 / 3)


def test_figures_keep_what_is_above_the_noise() -> None:
    assert figures(41.37961) == 41.4
    assert figures(2.13e-4, noise=1e-6 * 41.4) == 2.1e-4
    assert figures(2.13e-4, noise=1e-4) == 2e-4
    assert str(figures(-1e-12, noise=1e-6)) == "0.0"


def certificate(promised: bool = True, rounds_to: str | None = None) -> Certificate:
    made = counted(torch.eye(4) * 3, torch.eye(4) * 3 + 1e-9, [0, 1, 2, 3])
    for layer in (1, 0):
        made.layers[layer].add(torch.ones(4, 2), torch.ones(4, 2))
    made.layers[1].route(Routing.from_logits(-1e-6 * torch.arange(8.0).expand(4, 8), 2))
    made.layers[1].diversity = 0.25
    return Certificate.of(made, "some text", promised=promised, rounds_to=rounds_to)


def test_the_certificate_says_layer_by_layer_what_was_counted() -> None:
    found = certificate().to_json()
    assert found["layers"][0] == {"layer": 0, "cosine": 1.0, "norm_ratio": 1.0}
    assert found["layers"][1]["router_entropy"] == 1.0
    assert found["layers"][1]["load_cv"] == 1.7321
    assert found["layers"][1]["load"] == [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    assert found["summary"]["expert diversity"] == "0.250"
    assert found["summary"]["KL(dense || MoE)"] == "below 1e-09 nats per token"
    assert found["tokens"] == 4


def test_the_table_says_what_became_of_the_promise() -> None:
    assert dict(certificate().rows())["function preserved"] == "promised and kept"
    assert dict(certificate(promised=False).rows())["function preserved"] == "not promised"
    assert (
        dict(certificate(rounds_to="BF16").rows())["function preserved"] == "promised and kept, up to rounding to BF16"
    )
    assert dict(certificate(rounds_to="F32").rows())["function preserved"] == "promised and kept"


def test_batches_hold_every_sequence_once_and_know_what_is_padding() -> None:
    text = Text("t", [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 1]])
    batches = list(text.batches(6))
    assert [batch.sequences for batch in batches] == [[[1, 2, 3], [4, 5]], [[6, 7, 8, 9]], [[1, 1]]]
    ids_BT = batches[0].ids()
    assert ids_BT.shape == (2, 3)
    assert batches[0].real(ids_BT[..., None]).flatten().tolist() == [1, 2, 3, 4, 5]
    assert batches[0].real(ids_BT.flatten()[:, None]).flatten().tolist() == [1, 2, 3, 4, 5]
    assert len(list(text.batches(1))) == 4


def test_a_model_without_tokenizer_is_compared_on_the_same_random_ids(tmp_path: Path) -> None:
    first, second = (Text.read(tmp_path, None, 64, 100) for _ in range(2))
    assert first == second
    assert "random token ids" in first.name
    assert [len(ids) for ids in first.sequences] == [16] * 4


def byte_tokenizer(folder: Path) -> Path:
    """Write a tokenizer that makes one token of each character of an alphabet."""
    import tokenizers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    alphabet = {character: index for index, character in enumerate("?abcdefghijklmnopqrstuvwxyz ")}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(alphabet, unk_token="?"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?").save_pretrained(folder)
    return folder


def test_text_is_cut_to_the_tokens_asked_for_and_into_pieces(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path)
    data = tmp_path / "own.txt"
    data.write_text("ab" * 3000)
    assert [len(ids) for ids in Text.read(folder, data, 5000, 28).sequences] == [PIECE, PIECE, 5000 - 2 * PIECE]
    passages = Text.read(folder, None, 70, 28)
    assert passages.name == "built-in passages"
    assert [len(ids) for ids in passages.sequences] == [10] * 7
    assert [len(ids) for ids in Text.read(folder, None, 5, 28).sequences] == [2] * 2


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path)
    data = tmp_path / "own.txt"
    with pytest.raises(CertificateError, match=r"own\.txt: the text must be readable UTF-8"):
        Text.read(folder, data, 100, 28)
    data.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CertificateError, match=r"own\.txt: the text must be readable UTF-8"):
        Text.read(folder, data, 100, 28)
    data.write_text("az")
    with pytest.raises(CertificateError, match=r"below the embedding.s 26 rows\. Got 26"):
        Text.read(folder, data, 100, 26)
    data.write_text("a")
    with pytest.raises(CertificateError, match="at least two tokens"):
        Text.read(folder, data, 100, 28)


def test_a_tokenizer_that_does_not_load_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CertificateError, match="its tokenizer must load with the installed transformers"):
        Text.read(tmp_path, None, 100, 28)


def test_free_memory_is_a_share_of_the_machine() -> None:
    assert 1 << 20 < by_layer.free_memory() < 1 << 50


def test_a_batch_of_one_token_is_no_loss() -> None:
    assert Batch([[1]]).ids().tolist() == [[1]]
    assert counted(torch.zeros(1, 4), torch.zeros(1, 4)).dense_loss.count == 0
