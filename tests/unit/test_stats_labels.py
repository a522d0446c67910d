"""Statistics by label, and the names of labels."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from moesaic.seeds import Stream
from moesaic.stats import Batch, Running, Statistic, measure
from moesaic.stats.label_means import LabelMeans
from moesaic.stats.label_moments import LabelMoments
from moesaic.stats.labels import natural, prompt_label, prompt_of

TOKENS, HIDDEN = 60, 5
SUMMED = {"rtol": 1e-12, "atol": 1e-12}
"""Float64 sums of sixty terms of size one in another order."""


def tokens(seed: int = 0) -> Batch:
    """Return tokens of three labels, some without, in sequences of five."""
    random = torch.Generator().manual_seed(seed)
    return Batch(
        input_TD=torch.randn(TOKENS, HIDDEN, generator=random),
        label_T=torch.randint(-1, 3, (TOKENS,), generator=random),
        last_T=torch.arange(TOKENS) % 5 == 4,
        embedding_TD=torch.randn(TOKENS, HIDDEN, generator=random),
    )


def part(batch: Batch, chosen: torch.Tensor) -> Batch:
    assert batch.embedding_TD is not None
    return Batch(
        batch.input_TD[chosen], batch.label_T[chosen], batch.last_T[chosen], embedding_TD=batch.embedding_TD[chosen]
    )


def result(statistic: Statistic, *batches: Batch) -> dict[str, torch.Tensor]:
    return dict(measure([statistic], batches, width=7, labels=("a", "b", "c"))[statistic])


def test_label_means_are_means_of_the_tokens_of_each_label() -> None:
    batch = tokens()
    for view, vectors in (("input", batch.input_TD), ("embedding", batch.embedding_TD)):
        for which, allowed in (("all", torch.ones(TOKENS, dtype=torch.bool)), ("last", batch.last_T)):
            found = result(LabelMeans(view=view, tokens=which), batch)
            for label in range(3):
                chosen = (batch.label_T == label) & allowed
                assert_close(found["mean_LD"][label], vectors.double()[chosen].mean(0), **SUMMED)
                assert found["count_L"][label] == chosen.sum()


def test_a_label_without_tokens_has_a_mean_of_zeros_and_no_count() -> None:
    batch = tokens()
    found = result(LabelMeans(), part(batch, batch.label_T != 1))
    assert_close(found["mean_LD"][1], torch.zeros(HIDDEN, dtype=torch.float64), rtol=0, atol=0)  # nothing was added
    assert found["count_L"][1] == 0


def test_last_tokens_weigh_every_prompt_alike() -> None:
    ones, last_T = torch.ones(10, 1), torch.tensor([True] + [False] * 8 + [True])
    batch = Batch(torch.cat([ones[:1], 3 * ones[1:]]), torch.zeros(10, dtype=torch.int64), last_T)
    for which, mean in (("last", 2.0), ("all", 2.8)):
        statistic = LabelMeans(tokens=which)
        found = measure([statistic], [batch], width=1, labels=("a",))[statistic]["mean_LD"]
        assert_close(found, torch.tensor([[mean]], dtype=torch.float64), **SUMMED)


def test_moments_are_those_of_labelled_tokens() -> None:
    batch = tokens()
    found, x = result(LabelMoments(), batch), batch.input_TD.double()
    labelled = batch.label_T >= 0
    assert not labelled.all()
    assert_close(found["second_DD"], x[labelled].T @ x[labelled], **SUMMED)
    onehot_LT = (batch.label_T == torch.arange(3)[:, None]).double()
    assert_close(found["sum_LD"], onehot_LT @ x, **SUMMED)
    assert found["count_L"].tolist() == onehot_LT.sum(1).tolist()


def test_neither_the_order_of_batches_nor_the_number_of_processes_matters() -> None:
    batch = tokens()
    halves = part(batch, torch.arange(30, 60)), part(batch, torch.arange(30))
    for statistic in (LabelMoments(), LabelMeans(), LabelMeans(view="embedding", tokens="last")):
        here, there = (Running(statistic, HIDDEN, 7, 3, Stream(0)) for _ in halves)
        here.add(halves[0])
        there.add(halves[1])
        here.merge(there)
        for found in (here.finish(), result(statistic, *halves)):
            assert_close(found, result(statistic, batch), **SUMMED)


def test_a_result_does_not_change_when_more_is_added() -> None:
    for statistic in (LabelMoments(), LabelMeans()):
        running = Running(statistic, HIDDEN, 7, 3, Stream(0))
        running.add(tokens())
        first = running.finish()
        before = {name: tensor.clone() for name, tensor in first.items()}
        running.add(tokens(1))
        assert_close(first, before, rtol=0, atol=0)  # the same memory, untouched


def test_only_the_view_that_is_read_is_asked_for() -> None:
    assert LabelMoments().views == LabelMeans().views == {"input"}
    assert LabelMeans(view="embedding").views == {"embedding"}


def test_names_of_prompts_are_read_as_they_are_written() -> None:
    for expert in (0, 7, 123):
        for side in ("positive", "negative"):
            assert prompt_of(prompt_label(expert, side)) == (expert, side)
        assert prompt_of(str(expert)) == (expert, "positive")
    for label in ("", "a", "1:", ":positive", "1:neutral", "-1", "1 ", "1:positive\n", "²"):
        assert prompt_of(label) is None


def test_labels_sort_by_the_value_of_their_numbers() -> None:
    labels = [str(i) for i in range(12)]
    assert sorted(sorted(labels), key=natural) == labels
    assert sorted(["b", "a10", "a9", ""], key=natural) == ["", "a9", "a10", "b"]
    assert len({natural("1"), natural("01")}) == 2  # a total order
