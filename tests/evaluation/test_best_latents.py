"""Best latents: a planted label is found, the choice is made on training documents only, and chance stays chance."""

import pytest
import torch
from evaluation_fake import SITE, MemoryStore, topk_dictionary

from sparsight.errors import DataError
from sparsight.evaluation import FeatureTable, metrics
from sparsight.evaluation.features import best_latents


def planted(n: int = 600, seed: int = 0):
    """Sparse sums of the atoms of an orthonormal dictionary, which codes them exactly: latents are known."""
    g = torch.Generator().manual_seed(seed)
    dictionary = topk_dictionary(d_in=8, n_latents=8, k=8, site=SITE, model="tiny")
    with torch.no_grad():
        dictionary.atoms.copy_(torch.eye(8))
        dictionary.W_enc.copy_(torch.eye(8))
        dictionary.b_dec.zero_()
    z = (torch.rand(n, 8, generator=g) + 0.1) * (torch.rand(n, 8, generator=g) < 0.4)
    ids = torch.arange(n) // 10
    return dictionary, z, ids


def test_a_planted_label_is_found_with_certainty():
    dictionary, z, ids = planted()
    store = MemoryStore(z, ids, {"on": (z[:, 5] > 0).long(), "strong": (z[:, 2] > 0.6).long()})
    table = best_latents(dictionary, store)
    on, strong = table.rows
    assert (on.feature, on.label, on.latent, on.auroc, on.f1) == ("on", "1", 5, 1.0, 1.0)
    assert (strong.latent, strong.auroc) == (2, 1.0)
    assert strong.threshold == pytest.approx(0.6, abs=0.02)
    assert strong.f1 > 0.97
    heldout = ids % 3 == 0
    assert on.n == int(heldout.sum())
    assert on.n_positive == int((z[heldout, 5] > 0).sum())


def test_the_choice_is_made_on_training_documents_only():
    """The label is latent 1 in training and latent 6 in held-out documents: it must choose 1 and score at chance."""
    dictionary, z, ids = planted(n=3000)
    heldout = ids % 3 == 0
    label = torch.where(heldout, z[:, 6] > 0, z[:, 1] > 0).long()
    row = best_latents(dictionary, MemoryStore(z, ids, {"moved": label})).rows[0]
    assert (row.latent, row.auroc_train) == (1, 1.0)
    assert row.auroc == pytest.approx(metrics.auroc(z[heldout, 1], label[heldout] == 1), abs=1e-12)
    assert abs(row.auroc - 0.5) < 0.05
    # The threshold too: at or above the least training value, whatever held-out labels say.
    assert row.threshold == pytest.approx(z[~heldout, 1][z[~heldout, 1] > 0].min().item(), abs=1e-6)


def test_random_labels_score_at_chance_though_the_choice_was_flattered():
    dictionary, z, ids = planted(n=900)
    label = torch.randint(2, (900,), generator=torch.Generator().manual_seed(3))
    row = best_latents(dictionary, MemoryStore(z, ids, {"noise": label})).rows[0]
    assert row.auroc_train > 0.5
    assert abs(row.auroc - 0.5) < 0.08


def test_every_class_of_a_categorical_feature_is_told_from_the_rest_where_it_is_defined():
    dictionary, z, ids = planted()
    kind = torch.full((600,), -1)
    for value, latent in enumerate((0, 4, 7)):
        z[:, latent] = 0
        chosen = torch.arange(600) % 4 == value
        z[chosen, latent] = 1
        kind[chosen] = value
    table = best_latents(dictionary, MemoryStore(z, ids, {"kind": kind}), classes={"kind": ("red", "green")})
    assert [(row.label, row.latent, row.auroc) for row in table.rows] == [
        ("red", 0, 1.0),
        ("green", 4, 1.0),
        ("2", 7, 1.0),
    ]
    assert {row.n for row in table.rows} == {int(((ids % 3 == 0) & (kind >= 0)).sum())}


def test_a_class_that_one_side_lacks_is_left_out_with_the_reason():
    dictionary, z, ids = planted()
    rare = torch.zeros(600, dtype=torch.int64)
    rare[(ids % 3 == 0).nonzero()[0]] = 1
    never = torch.zeros(600, dtype=torch.int64)
    undefined = torch.full((600,), -1)
    labels = {"rare": rare, "never": never, "on": (z[:, 1] > 0).long(), "undefined": undefined}
    table = best_latents(dictionary, MemoryStore(z, ids, labels))
    assert [row.feature for row in table.rows] == ["on"]
    assert [(left.feature, left.label) for left in table.left_out] == [("rare", "1"), ("never", "1")]
    assert all("tokens of both classes" in left.reason for left in table.left_out)


def test_the_table_survives_json_and_shows_itself():
    dictionary, z, ids = planted()
    table = best_latents(dictionary, MemoryStore(z, ids, {"on": (z[:, 5] > 0).long()}), coder="pursuit", k=8)
    assert FeatureTable.model_validate_json(table.to_json()) == table
    assert "on" in table.to_table()


def test_a_store_without_labels_is_refused():
    dictionary, z, ids = planted()
    with pytest.raises(DataError, match="no labels"):
        best_latents(dictionary, MemoryStore(z, ids))
