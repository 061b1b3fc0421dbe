"""Moving a class along its shape: planted lines, trees and corners move the next token as their shapes predict."""

import pytest
import torch
from planted_features import PlantedStore, Reader, directions, documents

from sparsight.errors import UndefinedMetric
from sparsight.evaluation.features.class_means import ClassMeans, Products
from sparsight.evaluation.features.geometry import circles_of, places_of
from sparsight.evaluation.features.labelled import Documents, Meaning, Part, examples_of, labelled_features
from sparsight.evaluation.features.mediation import StoredTexts, joined
from sparsight.evaluation.features.moves import Places, Speakers, moves, next_tokens
from sparsight.evaluation.features.scores import Resampling
from sparsight.models import Site, Tokens

D, N, HOME = 12, 1200, Site.parse("0.resid_post")


def planted(places: torch.Tensor, seed: int = 71):
    """Words 1 to 2c carry c classes at the given places; the next word is the one nearest to the activation's place."""
    c, q = places.shape
    g = torch.Generator().manual_seed(seed)
    axes = directions(D, D, g)
    at = places.double() @ axes[:q]
    table = torch.zeros(60, D, dtype=torch.float64)
    table[1 : 2 * c + 1] = at.repeat(2, 1) + 0.1 * axes[q]
    unembed = torch.zeros(D, 60, dtype=torch.float64)
    unembed[:, 30 : 30 + c] = 8 * at.T
    # The nearest place, not the longest; and an answer sooner than any word.
    unembed[:, 30 : 30 + c] += (20 - 4 * at.square().sum(dim=1)) * axes[q][:, None] / 0.1
    word = torch.randint(1, 2 * c + 1, (N // 2,), generator=g)
    token_ids = torch.stack([word, 30 + (word - 1) % c], dim=1).reshape(-1)
    x = table[token_ids] + 0.05 * torch.randn(N, D, generator=g, dtype=torch.float64)
    labels = {"place": torch.where(token_ids < 30, (token_ids - 1) % c, -1)}
    store = PlantedStore({"0.resid_post": x}, documents(N), token_ids, labels)
    return store, Reader(table.float(), unembed), axes


def measured(store, lm, family: str, *, hide: bool = False, times: float = 1.0):
    c = int(store.labels(slice(0, N))["place"].max()) + 1
    meaning = Meaning("ordinal", tuple(map(str, range(c))), "")
    feature = labelled_features(store, ["place"], {"place": meaning})[0]
    e = examples_of(feature, Documents.of(store))
    texts = StoredTexts(store)
    rows, y, strata = joined(e)
    x = store.rows(HOME, rows)
    means = ClassMeans.of(x, y, strata, c, 1)
    half = ClassMeans.of(store.rows(HOME, e.fit.rows), e.fit.y, e.fit.strata, c, 1)
    halves = Products.of(half, store.rows(HOME, e.choose.rows), e.choose.y, e.choose.strata, e.choose.document_ids)
    told = next_tokens(texts, e.fit, c, 1)
    if hide:
        told = told.mean(dim=1, keepdim=True).expand_as(told).contiguous()
    speakers = Speakers.of(texts, e.judge, feature.labels, told, n=30)
    places = places_of(family, halves, torch.arange(c, dtype=torch.float64))
    means = ClassMeans(times * means.means, means.centres, means.counts)
    return moves(lm, speakers, HOME, means, places, Resampling(20), seed=1), places, halves


def test_a_value_on_a_line_is_moved_to_every_other_place_along_one_direction():
    line = torch.arange(5.0)[:, None]
    store, lm, _ = planted(line)
    found, places, _ = measured(store, lm, "line")
    assert (found.family, found.rank, found.unmoved) == ("line", 1, 1)
    assert found.moved.value > 0.98
    assert found.by_means > 0.98
    assert found.random < 0.4
    assert found.before == 0
    assert places.rank == 1


def test_only_tokens_that_carry_the_class_are_changed():
    """Every other token carries none, and of the words one in five carries the class of the last."""
    store, lm, _ = planted(torch.arange(5.0)[:, None])
    found, _, _ = measured(store, lm, "line")
    assert 1 <= found.tokens < 2.5


def test_a_line_is_not_enough_for_corners_of_a_simplex_and_all_means_are():
    store, lm, _ = planted(2 * torch.eye(4))
    found, _, _ = measured(store, lm, "line")
    assert found.moved.value < 0.75
    assert found.by_means > 0.98
    whole, _, _ = measured(store, lm, "simplex")
    assert (whole.family, whole.rank) == ("class means", 3)
    assert whole.moved.value > 0.98


def test_a_difference_that_stops_short_of_half_the_way_moves_nothing_and_twice_as_much_moves_all():
    store, lm, _ = planted(2 * torch.eye(4))
    found, _, _ = measured(store, lm, "simplex", times=0.4)
    assert found.moved.value < 0.02
    assert [d.times for d in found.doses] == [2, 4]
    assert all(d.moved > 0.98 for d in found.doses)
    assert all(d.random < 0.6 for d in found.doses)


def test_a_tree_predicts_the_main_branch_and_no_more():
    """Two branches far apart with two twigs each: along the branches the answer changes branch."""
    tree = torch.tensor([[3.0, 1, 0], [3, -1, 0], [-3, 0, 1], [-3, 0, -1]])
    store, lm, _ = planted(tree)
    found, places, _ = measured(store, lm, "tree")
    assert set(map(tuple, (places.branch[:2].tolist(), places.branch[2:].tolist()))) == {(0, 0), (1, 1)}
    assert found.rank == 1
    assert found.moved.value > 0.98
    assert found.random < 0.6


def test_a_next_token_that_tells_no_class_is_refused():
    store, lm, _ = planted(torch.arange(5.0)[:, None])
    with pytest.raises(UndefinedMetric, match="no move of it could be seen"):
        measured(store, lm, "line", hide=True)


def told_after(strata: list[int], y: list[int], following: list[int]):
    """Log next-token distributions of two strata and two classes: rows at even places, what follows at odd ones."""
    n = 2 * len(y)
    token_ids = torch.stack([torch.ones(len(y), dtype=torch.int64), torch.tensor(following)], dim=1).flatten()
    store = PlantedStore({"embed": torch.zeros(n, 2)}, documents(n), token_ids, {})
    rows = torch.arange(0, n, 2)
    part = Part(rows, torch.tensor(y), store.document_ids[rows], token_ids[rows], torch.tensor(strata))
    return next_tokens(StoredTexts(store), part, 2, 2)


def test_what_follows_a_class_is_counted_in_each_stratum_and_smoothed_by_one_token_of_all():
    told = told_after([0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [2, 3, 2, 3, 3])
    # Tokens 0 to 3: five counts in all, and one more spread evenly over the vocabulary.
    pooled = (torch.tensor([0.0, 0, 2, 3], dtype=torch.float64) + 1 / 4) / 6
    counts = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 1, 0]], [[0, 0, 0, 2], [0, 0, 0, 0]]], dtype=torch.float64)
    torch.testing.assert_close(told.exp(), (counts + pooled) / (counts.sum(dim=2, keepdim=True) + 1))


class Says:
    """A model whose next token has one distribution, whatever it reads."""

    name, family, device, has_causal_loss = "tiny", "planted", torch.device("cpu"), True

    def __init__(self, p: list[float]) -> None:
        self.p = torch.tensor(p)

    def logits(self, tokens: Tokens, *, edits=None) -> torch.Tensor:
        return self.p.log().expand(*tokens.ids.shape, -1)


def test_the_class_spoken_of_is_the_likeliest_in_the_text_s_own_stratum():
    """`sum p log q`, not `sum p q`: a class that rules out half of what is said is not spoken of."""
    q = torch.tensor([[[0.9, 0.05, 0.05], [0.45, 0.45, 0.1]], [[0.45, 0.45, 0.1], [0.9, 0.05, 0.05]]])
    ids = torch.ones(2, 3, dtype=torch.int64)
    tokens = Tokens(ids, ids.bool(), ~ids.bool())
    at = torch.tensor([2, 2])
    speakers = Speakers(tokens, at, ids.bool(), at, torch.tensor([0, 1]), at, q.double().log())
    assert speakers.speak_of(Says([0.5, 0.499, 0.001]), HOME, None).tolist() == [1, 0]


class Moved(Says):
    """Says the class 1, and notes what is added to its activations."""

    def __init__(self) -> None:
        super().__init__([0.1, 0.9])
        self.added: list[torch.Tensor] = []

    def logits(self, tokens: Tokens, *, edits=None) -> torch.Tensor:
        for edit in (edits or {}).values():
            self.added.append(edit(torch.zeros(*tokens.ids.shape, 200))[:, -1])
        return super().logits(tokens)


def two_classes(y: list[int]):
    """Texts of two classes, each told by a token of its own; means 200 wide; a shape that is all of them."""
    ids = torch.ones(len(y), 3, dtype=torch.int64)
    at = torch.full((len(y),), 2)
    told = torch.tensor([[[0.9, 0.1], [0.1, 0.9]]], dtype=torch.float64).log()
    classes = torch.tensor(y)
    speakers = Speakers(
        Tokens(ids, ids.bool(), ~ids.bool()), at, ids.bool(), classes, 0 * at, torch.arange(len(y)), told
    )
    x = torch.randn(2, 200, generator=torch.Generator().manual_seed(3))
    means = ClassMeans.of(x, torch.arange(2), torch.zeros(2, dtype=torch.int64), 2, 1)
    return speakers, means, Places("class means", torch.eye(2, dtype=torch.float64), torch.arange(2))


def test_random_differences_are_as_long_as_those_of_the_shape():
    """Two means at right angles, each as long as half of the difference: their own is shorter by a square root of 2."""
    speakers, means, places = two_classes([1] * 8)
    lm = Moved()
    moves(lm, speakers, HOME, means, places, Resampling(10), seed=2)
    shaped, random, *doses = lm.added
    whole = float((means.means[0, 0] - means.means[0, 1]).norm())
    assert shaped.norm(dim=1).tolist() == pytest.approx([whole] * 8, rel=1e-5)
    assert random.norm(dim=1).tolist() == pytest.approx([whole / 2**0.5] * 8, rel=0.15)
    for at, first in zip(doses, (shaped, random, shaped, random), strict=True):
        assert (at / first).unique().tolist() in ([2.0], [4.0])


def test_texts_that_speak_of_their_class_little_above_chance_are_refused():
    speakers, means, places = two_classes([1, 0, 1, 0])
    with pytest.raises(UndefinedMetric, match="tells the class in 50% of texts, expected at least 75%"):
        moves(Moved(), speakers, HOME, means, places, Resampling(10))


def test_effects_of_a_design_are_the_projection_of_the_means_on_it():
    means = torch.tensor([[[0.0, 1], [1, 5], [2, 0]]], dtype=torch.float64)
    line = Places("line", torch.arange(3, dtype=torch.float64)[:, None], torch.arange(3))
    placed = line.effects(means - means.mean(dim=1, keepdim=True))
    torch.testing.assert_close(placed[0, 2] - placed[0, 0], torch.tensor([2.0, -1], dtype=torch.float64))
    torch.testing.assert_close(placed[0, 1], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_as_many_circles_are_counted_as_distances_speak_for():
    """Periods 7 and 3.5 planted, the third harmonic absent; without an order, none."""
    ring = 2 * torch.pi * torch.arange(7, dtype=torch.float64) / 7
    places = torch.stack([2 * ring.cos(), 2 * ring.sin(), (2 * ring).cos(), (2 * ring).sin()], dim=1)
    store, lm, _ = planted(places)
    _, _, halves = measured(store, lm, "simplex")
    assert circles_of(halves, torch.arange(7, dtype=torch.float64), 7.0) == (7.0, 3.5)
    store, lm, _ = planted(2 * torch.eye(7))
    _, _, halves = measured(store, lm, "simplex")
    assert circles_of(halves, torch.arange(7, dtype=torch.float64), 7.0) == ()
