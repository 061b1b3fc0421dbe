"""Bootstrap over documents: coverage on a case where the interval is known, pairing, and refusals."""

import pytest
import torch

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.bootstrap import DocumentSums, bootstrap, paired_difference


def ratio(sums: torch.Tensor) -> torch.Tensor:
    return sums[..., 0] / sums[..., 1]


def documents(values: torch.Tensor) -> torch.Tensor:
    """One token in each document."""
    return torch.stack([values, torch.ones_like(values)], dim=1)


def test_the_interval_of_a_gaussian_mean_covers_it_as_often_as_promised():
    g = torch.Generator().manual_seed(0)
    covered = 0
    for trial in range(300):
        values = torch.randn(60, generator=g, dtype=torch.float64) + 3
        interval = bootstrap(documents(values), ratio, n_resamples=300, level=0.9, seed=trial)
        covered += interval.low <= 3 <= interval.high
    # Binomial(300, 0.9) has standard deviation 5.2; the percentile interval at n = 60 is short by about 1 %.
    assert 250 <= covered <= 285


def test_the_standard_error_is_that_of_the_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    interval = bootstrap(documents(values), ratio, n_resamples=4000)
    assert interval.standard_error == pytest.approx(values.std(correction=0).item() / 20, rel=0.05)
    assert interval.value == pytest.approx(values.mean().item(), abs=1e-12)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * interval.standard_error, rel=0.05)
    assert (interval.level, interval.n_documents) == (0.95, 400)


def test_documents_are_resampled_not_tokens():
    """100 copies of a token inside its document tell nothing new: the interval must not shrink."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    once = bootstrap(documents(values), ratio)
    often = bootstrap(100 * documents(values), ratio)
    assert often.low == pytest.approx(once.low, abs=1e-9)
    assert often.high == pytest.approx(once.high, abs=1e-9)


def test_one_seed_gives_one_answer_and_another_seed_another():
    sums = documents(torch.arange(20.0).double())
    assert bootstrap(sums, ratio, seed=3) == bootstrap(sums, ratio, seed=3)
    assert bootstrap(sums, ratio, seed=3) != bootstrap(sums, ratio, seed=4)


def test_a_paired_difference_forgets_what_both_find_hard():
    g = torch.Generator().manual_seed(5)
    hard = 10 * torch.randn(80, generator=g, dtype=torch.float64)
    noise = 0.01 * torch.randn(80, generator=g, dtype=torch.float64)
    difference = paired_difference(documents(hard + 1 + noise), documents(hard), ratio)
    assert difference.value == pytest.approx(1, abs=0.01)
    assert 0.99 < difference.low < difference.high < 1.01
    assert paired_difference(documents(hard), documents(hard), ratio).high == 0


def test_document_sums_add_up_in_the_order_of_first_sight():
    sums = DocumentSums(2)
    terms = torch.arange(10.0).double().view(5, 2)
    sums.add(torch.tensor([7, 3, 7]), terms[:3])
    sums.add(torch.tensor([3, 99]), terms[3:])
    assert len(sums) == 3
    assert sums.sums.tolist() == [[2 + 6, 3 + 7], [0 + 4, 1 + 5], [8, 9]]


def test_how_the_tokens_were_batched_does_not_matter():
    g = torch.Generator().manual_seed(6)
    ids, terms = torch.randint(30, (500,), generator=g), torch.rand(500, 3, generator=g, dtype=torch.float64)
    whole = DocumentSums(3)
    whole.add(ids, terms)
    parts = DocumentSums(3)
    for i in range(0, 500, 70):
        parts.add(ids[i : i + 70], terms[i : i + 70])
    torch.testing.assert_close(parts.sums.sort(dim=0).values, whole.sums.sort(dim=0).values)


def test_one_document_has_no_interval():
    with pytest.raises(UndefinedMetric, match="at least two documents, got 1"):
        bootstrap(documents(torch.ones(1).double()), ratio)


def test_a_statistic_that_does_not_exist_on_a_draw_has_no_interval():
    """One document of three carries the denominator: many draws leave it out."""
    sums = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    with pytest.raises(UndefinedMetric, match="does not exist on some"):
        bootstrap(sums, ratio)


@pytest.mark.parametrize("wrong", [{"level": 95.0}, {"level": 0.0}, {"n_resamples": 1}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        bootstrap(documents(torch.ones(5).double()), ratio, **wrong)
