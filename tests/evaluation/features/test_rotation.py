"""Turning circles: on planted circles, and what can be read as an answer."""

import math

import pytest
import torch
from planted_features import PlantedStore, directions, documents

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.labelled import Part
from sparsight.evaluation.features.mediation import StoredTexts
from sparsight.evaluation.features.rotation import Circles, answers

D, C = 16, 7


def test_every_stratum_turns_its_own_circles_each_by_its_own_angle_about_its_own_mean():
    """Two strata far from the origin, with circles of periods 7 and 3.5 in planes of their own."""
    g = torch.Generator().manual_seed(81)
    planes = directions(8, D, g).view(2, 4, D)
    centres = 20 * torch.randn(2, D, generator=g, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(C, dtype=torch.float64) / C
    ring = torch.stack([angle.cos(), angle.sin(), (2 * angle).cos(), (2 * angle).sin()], dim=1)
    means = centres[:, None] + 3 * ring @ planes
    y, strata = torch.arange(1400) // 2 % C, torch.arange(1400) % 2
    x = (means[strata, y] + 0.05 * torch.randn(1400, D, generator=g, dtype=torch.float64)).float()
    circles = Circles.of(x, y.double(), strata, 2, (7.0, 3.5))
    for steps in (1, 3):
        turned = circles.turned(means[strata, y].float(), strata, steps)
        expected = means[strata, (y + steps) % C].float()
        assert float((turned - expected).norm(dim=1).max()) < 0.05
    with pytest.raises(UndefinedMetric, match="circles need more than 4 tokens in each stratum, got 0"):
        Circles.of(x, y.double(), strata, 3, (7.0, 3.5))


def read(token_ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Answers after the tokens at even places, whose classes are `y`; tokens at odd places are what follows."""
    n = len(token_ids)
    store = PlantedStore({"embed": torch.zeros(n, 2)}, documents(n), token_ids, {})
    rows = torch.arange(0, n, 2)
    zeros = torch.zeros_like(rows)
    return answers(StoredTexts(store), Part(rows, y, store.document_ids[rows], token_ids[rows], zeros), 2, 1)


def test_the_answer_of_a_class_is_what_follows_it_nine_times_in_ten():
    y = torch.arange(40) % 2
    following = 50 + y
    token_ids = torch.stack([torch.ones(40, dtype=torch.int64), following], dim=1).flatten()
    assert read(token_ids, y).tolist() == [[50, 51]]
    mixed = token_ids.clone()
    mixed[1:9:4] = 60  # 2 of the 20 after class 0: nine in ten remain
    assert read(mixed, y).tolist() == [[50, 51]]
    mixed[9] = 60
    with pytest.raises(UndefinedMetric, match="does not follow from the class: the commonest comes 85%"):
        read(mixed, y)


def test_classes_with_one_answer_and_classes_never_seen_have_none():
    y = torch.arange(40) % 2
    token_ids = torch.full((80,), 50)
    with pytest.raises(UndefinedMetric, match="two classes are followed by the same token"):
        read(token_ids, y)
    with pytest.raises(UndefinedMetric, match="class 1 of stratum 0 is never seen"):
        read(token_ids, 0 * y)
