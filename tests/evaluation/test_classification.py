"""AUROC and F1: against scikit-learn, with ties, zeros and negative values, and the sparse route against the dense."""

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.classification import SparseColumns, auroc, best_threshold, detect


def dense_codes(seed: int, n: int = 300, m: int = 12, signed: bool = False) -> torch.Tensor:
    """Mostly zeros, few distinct values (many ties), a silent latent and one that is always in use."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randint(1, 6, (n, m), generator=g).float() / 4
    if signed:
        z *= torch.where(torch.rand(n, m, generator=g) < 0.5, -1.0, 1.0)
    z *= torch.rand(n, m, generator=g) < 0.2
    z[:, 3] = 0
    z[:, 4] = torch.rand(n, generator=g) + 0.1
    return z


@pytest.mark.parametrize("signed", [False, True])
def test_all_routes_agree_with_scikit_learn(signed):
    from sklearn.metrics import roc_auc_score

    z = dense_codes(0, signed=signed)
    labels = torch.rand(300, generator=torch.Generator().manual_seed(1)) < 0.3
    columns = SparseColumns.of([SparseCode.from_dense(part) for part in z.split(77)])
    sparse = columns.auroc(labels)
    for latent in range(z.shape[1]):
        expected = roc_auc_score(labels.numpy(), z[:, latent].numpy())
        assert auroc(z[:, latent], labels) == pytest.approx(expected, abs=1e-12)
        assert sparse[latent].item() == pytest.approx(expected, abs=1e-12)
        assert torch.equal(columns.column(latent), z[:, latent])


def test_tokens_where_the_label_is_undefined_are_left_out():
    z = dense_codes(2)
    g = torch.Generator().manual_seed(3)
    labels, defined = torch.rand(300, generator=g) < 0.5, torch.rand(300, generator=g) < 0.4
    found = SparseColumns.of([SparseCode.from_dense(z)]).auroc(labels, defined)
    for latent in range(z.shape[1]):
        assert found[latent].item() == pytest.approx(auroc(z[defined, latent], labels[defined]), abs=1e-12)


def test_a_latent_that_is_the_label_scores_one_and_its_opposite_zero():
    labels = torch.tensor([True, False, True, False])
    z = torch.stack([labels.float(), (~labels).float(), torch.zeros(4)], dim=1)
    assert SparseColumns.of([SparseCode.from_dense(z)]).auroc(labels).tolist() == [1.0, 0.0, 0.5]


def test_a_known_case_with_ties():
    """Pairs: (1 > 0), (1 = 1) half, (0 = 0) half, (0 < 1): 2 of 4."""
    assert auroc(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([True, True, False, False])) == 0.5
    assert auroc(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([True, True, False, False])) == 0.75


def test_any_rising_change_of_scale_leaves_auroc_alone():
    scores = torch.randn(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = scores + torch.randn(200, generator=torch.Generator().manual_seed(5), dtype=torch.float64) > 0
    assert auroc(scores.exp(), labels) == auroc(scores, labels)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


def test_silent_codes_have_columns_too():
    nothing = SparseColumns.of([SparseCode.from_dense(torch.zeros(4, 3))])
    assert nothing.auroc(torch.tensor([True, False, True, False])).tolist() == [0.5, 0.5, 0.5]
    assert nothing.column(2).tolist() == [0, 0, 0, 0]


def test_f1_and_its_parts_agree_with_scikit_learn():
    from sklearn.metrics import precision_recall_fscore_support

    scores = torch.rand(100, generator=torch.Generator().manual_seed(6))
    labels = torch.rand(100, generator=torch.Generator().manual_seed(7)) < scores
    for threshold in (0.2, 0.5, 0.9):
        found = detect(scores, labels, threshold)
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels.numpy(), (scores >= threshold).numpy(), average="binary"
        )
        assert (found.precision, found.recall, found.f1) == pytest.approx((precision, recall, f1), abs=1e-12)


def test_the_best_threshold_is_no_worse_than_any_other():
    scores = (torch.rand(80, generator=torch.Generator().manual_seed(8)) * 10).round() / 10
    labels = torch.rand(80, generator=torch.Generator().manual_seed(9)) < scores**2
    best = detect(scores, labels, best_threshold(scores, labels)).f1
    assert best == max(detect(scores, labels, t).f1 for t in scores.unique().tolist())


def test_a_useless_score_does_best_by_answering_yes():
    scores, labels = torch.zeros(10), torch.arange(10) < 4
    assert best_threshold(scores, labels) == 0.0
    assert detect(scores, labels, 0.0).f1 == pytest.approx(2 * 4 / 14)


def test_never_firing_is_precision_zero_not_nan():
    found = detect(torch.zeros(4), torch.tensor([True, False, True, False]), 1.0)
    assert (found.precision, found.recall, found.f1) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("labels", [[True, True], [False, False]])
def test_a_class_without_examples_is_refused(labels):
    labels, scores = torch.tensor(labels), torch.tensor([0.0, 1.0])
    for refuse in (
        lambda: auroc(scores, labels),
        lambda: best_threshold(scores, labels),
        lambda: detect(scores, labels, 0.5),
        lambda: SparseColumns.of([SparseCode.from_dense(scores[:, None])]).auroc(labels),
    ):
        with pytest.raises(UndefinedMetric, match="tokens of both classes"):
            refuse()


def test_codes_of_two_dictionaries_are_refused():
    codes = [SparseCode.from_dense(torch.zeros(2, 3)), SparseCode.from_dense(torch.zeros(2, 4))]
    with pytest.raises(ValueError, match="one n_latents, got"):
        SparseColumns.of(codes)
