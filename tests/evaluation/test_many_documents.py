"""Beyond the rows that are kept, documents share them: the sums and the number of documents stay right."""

import pytest
import torch

from sparsight.evaluation.bootstrap import DocumentSums, Resamples, bootstrap


def filled(most: int, ids: torch.Tensor, terms: torch.Tensor, batch: int) -> DocumentSums:
    sums = DocumentSums(terms.shape[1], most)
    for rows in torch.arange(len(ids)).split(batch):
        sums.add(ids[rows], terms[rows])
    return sums


def test_totals_and_documents_do_not_depend_on_how_many_rows_are_kept():
    g = torch.Generator().manual_seed(31)
    ids = torch.arange(500).repeat_interleave(7)
    terms = torch.randn(len(ids), 3, generator=g).double()
    whole, shared = filled(10_000, ids, terms, 64), filled(40, ids, terms, 64)
    assert (len(whole), len(shared)) == (500, 40)
    assert whole.n_documents == shared.n_documents == 500
    torch.testing.assert_close(whole.totals, shared.totals)


def test_an_interval_over_shared_rows_is_as_wide_as_one_over_documents():
    g = torch.Generator().manual_seed(32)
    ids = torch.arange(8000)
    terms = torch.stack([torch.randn(8000, generator=g).double() + 1, torch.ones(8000).double()], dim=1)
    whole, shared = filled(8000, ids, terms, 4096), filled(800, ids, terms, 4096)
    wide = [bootstrap(sums.sums, lambda s: s[..., 0] / s[..., 1]) for sums in (whole, shared)]
    assert wide[0].standard_error == pytest.approx(8000**-0.5, rel=0.1)
    assert wide[1].standard_error == pytest.approx(wide[0].standard_error, rel=0.15)


def test_independent_sides_have_the_spread_of_a_difference():
    g = torch.Generator().manual_seed(33)
    sides = [torch.randn(400, 1, generator=g).double() for _ in range(2)]
    drawn = [Resamples.of(torch.cat([s, torch.ones_like(s)], 1), seed=i) for i, s in enumerate(sides)]
    found = drawn[0].minus(drawn[1], lambda s: s[..., 0] / s[..., 1])
    assert found.value == pytest.approx((sides[0].mean() - sides[1].mean()).item())
    assert found.standard_error == pytest.approx((2 / 400) ** 0.5, rel=0.1)
