"""L0 and density: counts of a code that was written by hand."""

import math

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation import metrics
from sparsight.evaluation.density import Density
from sparsight.evaluation.l0 import L0


def code_of(rows: list[list[float]]) -> SparseCode:
    return SparseCode.from_dense(torch.tensor(rows, dtype=torch.float32))


@pytest.fixture
def code() -> SparseCode:
    """Latent 0 always, latent 1 on one token in two (once negative), latent 2 once, latent 3 never."""
    return code_of([[1, 0, 0, 0], [2, -1, 0, 0], [1, 0, 0, 0], [1, 5, 0.1, 0]])


def test_l0_counts_what_is_not_zero_whatever_its_sign(code):
    l0 = L0.of(code)
    assert l0.counts.tolist() == [0, 2, 1, 1]
    assert l0.value == metrics.l0(code) == 1.75
    assert (l0.n, l0.median, l0.percentile(0), l0.percentile(51), l0.percentile(100)) == (4, 1, 1, 2, 3)


def test_unused_slots_do_not_count_whatever_latent_they_name():
    code = SparseCode(torch.tensor([[2, 2, 0]]), torch.tensor([[3.0, 0.0, 0.0]]), 4)
    assert metrics.l0(code) == 1.0
    assert metrics.density(code).tolist() == [0, 0, 1, 0]


def test_percentiles_are_by_nearest_rank():
    code = code_of([[1.0] * i + [0.0] * (100 - i) for i in range(1, 101)])
    l0 = L0.of(code)
    assert [l0.percentile(q) for q in (5, 50, 95, 99)] == [5, 50, 95, 99]


def test_batches_add_up_though_their_codes_have_different_slots(code):
    longer = code_of([[1, 1, 1, 1]])
    both = SparseCode.cat([code, longer])
    assert torch.equal((L0.of(code) + L0.of(longer)).counts, L0.of(both).counts)
    assert torch.equal((L0.of(longer) + L0.of(code)).counts, L0.of(both).counts)
    joined = Density.of(code) + Density.of(longer)
    assert torch.equal(joined.counts, Density.of(both).counts)
    assert joined.n == 5


def test_density_is_the_share_of_tokens(code):
    assert metrics.density(code).tolist() == [1.0, 0.5, 0.25, 0.0]
    assert metrics.dead(code).tolist() == [False, False, False, True]
    assert metrics.dead_fraction(code) == 0.25
    assert metrics.dense_fraction(code) == 0.75
    assert metrics.dense_fraction(code, 0.5) == 0.25  # above, not at


def test_never_seen_in_n_tokens_bounds_the_density_by_three_over_n():
    density = Density(1000, torch.tensor([0, 5]))
    assert density.dead_bound == 0.003
    # The bound is the density that is missed with probability 5 %.
    assert (1 - density.dead_bound) ** 1000 == pytest.approx(0.05, abs=1e-3)
    assert Density(2, torch.tensor([0])).dead_bound == 1.0


def test_the_histogram_holds_every_live_latent_once():
    n = 1000
    counts = torch.tensor([0, 0, 1, 9, 10, 11, 100, 999, 1000])
    histogram = Density(n, counts).histogram(per_decade=1)
    assert histogram.edges.tolist() == [-3, -2, -1, 0]
    assert histogram.n_dead == 2
    assert int(histogram.counts.sum()) == 7
    assert histogram.counts.tolist() == [2, 2, 3]  # an edge belongs to the bin above it


def test_the_lowest_bin_holds_the_smallest_density_that_can_be_seen():
    for n in (1, 2, 10, 37, 1000, 12345):
        histogram = Density(n, torch.tensor([1, n])).histogram()
        assert histogram.edges[0] <= math.log10(1 / n) + 1e-9
        assert histogram.counts[0] >= 1
        assert int(histogram.counts.sum()) == 2
        assert histogram.edges[-1] == 0


def test_no_token_and_two_dictionaries_are_refused(code):
    nothing = SparseCode(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), 4)
    with pytest.raises(UndefinedMetric, match="no token"):
        metrics.l0(nothing)
    with pytest.raises(UndefinedMetric, match="no token"):
        metrics.density(nothing)
    with pytest.raises(ValueError, match="one dictionary, got 4 and 5"):
        Density.of(code) + Density(1, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match="between 0 and 100"):
        L0.of(code).percentile(101)
