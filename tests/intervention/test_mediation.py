"""Planted networks: a mediator passes, a product needs two dimensions, a copy and a dormant pathway fail."""

from dataclasses import dataclass

import pytest
import torch
from intervention_models import tiny_model, unit

from sparsight.errors import DataError, UndefinedMetric
from sparsight.intervention import Direction, ModelReadout, NextToken, behaviour_scores, mediation
from sparsight.intervention.mediation import Effect, MediationTest, explicit_or_tacit, fraction_mediated
from sparsight.intervention.mediation.battery import random_subspaces
from sparsight.intervention.mediation.measure import draw_pairs

D = 12


@dataclass
class Planted:
    """Activations, and a behaviour that is a function of them (and of the inputs they came from)."""

    x: torch.Tensor
    function: object
    inputs: torch.Tensor

    def score(self, x, rows):
        return self.function(x, self.inputs[rows])


def _inputs(n=400, seed=0):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=g)
    return label, torch.randn(n, D, generator=g, dtype=torch.float64), g


def _axes():
    return torch.linalg.qr(torch.stack([unit(D, i) for i in range(6)]).T).Q.T


def _mediator():
    """y = g(r.x), with g steep but finite, and noise in everything but r."""
    label, noise, _ = _inputs()
    r = _axes()[0]
    x = noise - (noise @ r)[:, None] * r + (2.0 * label - 1)[:, None] * r
    return Planted(x, lambda x, _: torch.tanh(2 * (x @ r)), noise), label, r


def _product():
    """y = (r1.x)(r2.x): with r2 drawn at random, r1 alone decides nothing of the label y > 0."""
    _, noise, g = _inputs()
    r1, r2 = _axes()[:2]
    signs = 2.0 * torch.randint(2, (400, 2), generator=g) - 1
    plain = noise - (noise @ r1)[:, None] * r1 - (noise @ r2)[:, None] * r2
    x = plain + signs[:, :1] * r1 + signs[:, 1:] * r2
    return Planted(x, lambda x, _: (x @ r1) * (x @ r2), noise), (signs.prod(dim=1) > 0).long(), r1, r2


def _copy():
    """The label is stored twice: along r, which is read, and along a copy that nothing reads."""
    readout, label, r = _mediator()
    copy = _axes()[1]
    x = readout.x - (readout.x @ copy)[:, None] * copy + 3 * (2.0 * label - 1)[:, None] * copy
    return Planted(x, readout.function, readout.inputs), label, r, copy


def test_a_planted_mediator_passes_every_test():
    readout, label, r = _mediator()
    found = mediation(readout, label, r, n_pairs=100, n_random=40)
    assert found.verdict == "mediates"
    assert found.test("interchange").value == pytest.approx(1.0, abs=1e-9)
    assert found.test("complement").value == pytest.approx(0.0, abs=1e-9)
    assert found.test("necessity").value == pytest.approx(1.0, abs=1e-9)
    assert found.test("sufficiency").value == pytest.approx(1.0, abs=1e-9)
    assert found.test("dose-response").value == 1.0
    assert found.test("not dormant").value == pytest.approx(1.0, abs=1e-6)
    assert found.dimensions == [pytest.approx(1.0)]
    assert found.test("on the manifold").value < 1
    assert found.test("shuffled labels").value < 0.8
    table = found.to_table()
    assert all(test.name in table.split("mediated fraction by dimension")[0] for test in found.tests)


def test_another_direction_does_not_mediate():
    readout, label, _ = _mediator()
    found = mediation(readout, label, _axes()[2], n_pairs=100, n_random=40)
    assert found.verdict == "does not mediate"
    assert found.test("interchange").value == pytest.approx(0.0, abs=1e-9)


def test_one_factor_of_a_product_fails_and_both_carry_everything():
    readout, label, r1, r2 = _product()
    one = mediation(readout, label, r1, n_pairs=200, n_random=40)
    assert one.verdict == "does not mediate" or one.test("interchange").value < 0.7
    assert not one.test("interchange").passed
    pairs = draw_pairs(readout, label, 200, 0)
    both = fraction_mediated(readout, pairs, torch.stack([r1, r2]))
    assert both.value == pytest.approx(1.0, abs=1e-9)


def test_the_dimension_of_a_product_is_two():
    """From one factor on, the next dimension that is granted completes the pair, if it can be found at all."""
    readout, label, r1, r2 = _product()
    # The other factor as the main component of the differences: make it large.
    readout = Planted(
        readout.x + 4 * (readout.x @ r2)[:, None] * r2, lambda x, _: (x @ r1) * (x @ r2) / 5, readout.inputs
    )
    found = mediation(readout, label, r1, n_pairs=200, n_random=20)
    assert len(found.dimensions) == 2
    assert found.dimensions[1] > 0.95


def test_dimensions_are_granted_one_after_another():
    """Three factors that saturate, vary on their own and add up: the two that are missing come one by one."""
    _, noise, g = _inputs()
    axes = _axes()[:3]
    signs = 2.0 * torch.randint(2, (400, 3), generator=g).double() - 1
    x = noise - (noise @ axes.T) @ axes + signs * torch.tensor([5.0, 12.0, 3.0]) @ axes
    readout = Planted(x, lambda x, _: torch.tanh(x @ axes.T).sum(dim=1), noise)
    found = mediation(readout, (signs.sum(dim=1) > 0).long(), axes[0], n_pairs=200, n_random=20)
    one, two, three = found.dimensions
    assert one < 0.5 < two < 0.8
    assert three == pytest.approx(1, abs=1e-4)


def test_random_subspaces_vary_as_the_data_do():
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x[:, 3] *= 30
    rows = torch.cat(random_subspaces(x + 7, 1, 50, 0))
    assert rows[:, 3].abs().median() > 0.95
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize(("low", "control", "passed"), [(0.7, 0.6, True), (0.7, 0.75, False), (0.45, 0.1, False)])
def test_an_effect_passes_if_its_whole_interval_is_large_and_beyond_the_control(low, control, passed):
    effect = Effect(value=0.8, low=low, high=0.9, n=10)
    assert MediationTest.beyond(effect, "necessity", "", control=control).passed == passed


def test_a_copy_that_is_not_read_can_be_decoded_and_does_not_mediate():
    readout, label, r, copy = _copy()
    assert ((readout.x @ copy > 0).long() == label).all()
    found = mediation(readout, label, copy, n_pairs=100, n_random=40)
    assert found.verdict == "does not mediate"
    assert mediation(readout, label, r, n_pairs=100, n_random=40).verdict == "mediates"


def test_a_sum_of_what_varies_unread_and_what_is_read_unvarying_is_an_illusion():
    """Along (copy + dormant) a swap moves the behaviour, though the network never does so by that way."""
    label, noise, _ = _inputs()
    read, copy, dormant = _axes()[:3]
    plain = noise - sum((noise @ a)[:, None] * a for a in (read, copy, dormant))
    sign = (2.0 * label - 1)[:, None]
    size = 0.5 + noise[:, :1].abs()  # of different sizes, so that gradients differ and span both ways
    x = plain + sign * size * read + 6 * sign * copy
    readout = Planted(x, lambda x, _: torch.tanh(x @ read) + torch.tanh(x @ dormant), noise)
    illusion = torch.nn.functional.normalize(copy + dormant, dim=0)
    found = mediation(readout, label, illusion, n_pairs=100, n_random=40)
    assert found.test("interchange").value > 0.5
    assert found.test("not dormant").value < 0.05
    assert not found.test("not dormant").passed
    assert found.test("on the manifold").value > 10  # where nothing varied, six stand now
    assert found.verdict == "does not mediate"


def test_two_mediators_that_add_up_carry_their_shares_of_every_test():
    """`y = r1.x + 2 r2.x`, both equal to the class: one third of the behaviour goes through the first of them."""
    label, noise, _ = _inputs()
    r1, r2 = _axes()[:2]
    sign = (2.0 * label - 1)[:, None]
    x = noise - (noise @ r1)[:, None] * r1 - (noise @ r2)[:, None] * r2 + sign * (r1 + r2)
    readout = Planted(x, lambda x, _: x @ r1 + 2 * (x @ r2), noise)
    for direction, share in ((r1, 1 / 3), (r2, 2 / 3), (r1 + r2, 1.0)):
        found = mediation(readout, label, direction, n_pairs=60, n_random=40)
        for name in ("necessity", "sufficiency", "interchange"):
            # Along r1 + r2 a change of c moves y by 3 c / 2 for each unit of either: all of the gap.
            assert found.test(name).value == pytest.approx(share, abs=1e-9), name
        assert found.test("complement").value == pytest.approx(1 - share, abs=1e-9)
    assert found.test("main components").value > 0.9  # along r1 + r2 the classes are apart, elsewhere is noise
    zero = mediation(readout, label, r1, n_pairs=60, n_random=20).test("necessity, to zero").value
    assert zero == pytest.approx(1 / 6, abs=1e-9)  # from 1 to 0 where the gap is from 1 to -1


def test_a_behaviour_that_does_not_rise_with_every_dose_is_said():
    """`c + sin(pi c)` at -1, -1/2, 0, 1/2, 1 is -1, -3/2, 0, 3/2, 1: two of four steps rise."""
    readout, label, r = _mediator()
    bent = Planted(readout.x, lambda x, _: x @ r + torch.sin(torch.pi * (x @ r)), readout.inputs)
    found = mediation(bent, label, r, n_pairs=60, n_random=20)
    assert found.test("dose-response").value == 0.5
    assert not found.test("dose-response").passed
    assert found.verdict == "mediates in part"


def test_what_does_not_fit_a_readout_is_refused():
    readout, label, r = _mediator()
    for wrong, said in (
        (torch.zeros(D), "zero"),
        (torch.ones(5), "width 5, the activations have 12"),
        ([], "at least one direction"),
    ):
        with pytest.raises(ValueError, match=said):
            mediation(readout, label, wrong)
    with pytest.raises(ValueError, match="one label for each input, got 3 for 400"):
        mediation(readout, label[:3], r)
    lm = tiny_model("llama")
    model = ModelReadout(lm, lm.tokenize(["w1", "w2"]), "0.resid_post", NextToken((7,)))
    with pytest.raises(DataError, match="found in other"):
        mediation(model, torch.tensor([0, 1]), Direction(torch.ones(16), model.site, "other"))


def test_a_model_is_read_and_written_at_its_last_token():
    """At the last block's output the head alone follows: a swap of everything is the source's behaviour."""
    lm = tiny_model("llama")
    tokens = lm.tokenize(["w1 w2 w3", "w4", "w5 w6"])
    behaviour = NextToken((7,), (9,))
    readout = ModelReadout(lm, tokens, "1.resid_post", behaviour)
    clean, rows = behaviour_scores(lm, tokens, behaviour), torch.arange(3)
    with torch.no_grad():
        torch.testing.assert_close(readout.score(readout.x, rows), clean, rtol=0, atol=1e-10)
        turned = readout.score(readout.x.flip(0), rows)
    torch.testing.assert_close(turned, clean.flip(0), rtol=0, atol=1e-10)


def test_specificity_is_held_against_the_most_allowed():
    readout, label, r = _mediator()

    def left(edit):
        """How far an edited input is from the coordinate that the negatives have, which is what ablation writes."""
        return float((edit(readout.x) @ r + 1).abs().max())

    cheap = mediation(readout, label, r, n_pairs=60, n_random=20, side_effect=left)
    assert cheap.test("specificity").value == pytest.approx(0, abs=1e-9)
    dear = mediation(readout, label, r, n_pairs=60, n_random=20, side_effect=lambda edit: 0.5)
    assert (cheap.verdict, dear.verdict) == ("mediates", "mediates in part")


def test_no_class_and_no_effect_are_said_plainly():
    readout, label, r = _mediator()
    with pytest.raises(UndefinedMetric, match="both classes"):
        mediation(readout, torch.ones_like(label), r)
    deaf = Planted(readout.x, lambda x, _: 0 * x[:, 0], readout.inputs)
    with pytest.raises(UndefinedMetric, match="not decided at this site"):
        mediation(deaf, label, r)


def test_three_networks_with_equal_outputs_are_told_apart():
    """Which of four moves is best: stored as a variable; searched anew from the raw board; stored, and not used."""
    g = torch.Generator().manual_seed(3)
    board = torch.randn(600, 6, generator=g, dtype=torch.float64)
    worth = torch.where(board[:, 0] * board[:, 1] > 0, 1.0, -1.0).double()  # linear in no coordinate
    label = (worth > 0).long()
    axes = _axes()
    raw = board @ axes[:6].roll(1, 0)

    def heuristic(x, _):
        return x @ axes[0]

    stored = Planted(board[:, 1:] @ axes[1:6] + worth[:, None] * axes[0], heuristic, board)

    def searched_from(x, _):
        seen = x @ axes[:6].roll(1, 0).T
        return torch.tanh(50 * seen[:, 0] * seen[:, 1])

    searched = Planted(raw, searched_from, board)
    extra = unit(D, 99)
    extra = torch.nn.functional.normalize(extra - axes.T @ (axes @ extra), dim=0)
    unused = Planted(raw + worth[:, None] * extra, searched_from, board)
    # equal outputs on every input
    rows = torch.arange(600)
    assert ((stored.score(stored.x, rows) > 0) == (searched.score(searched.x, rows) > 0)).all()
    assert explicit_or_tacit(stored, label).verdict == "explicit"
    assert explicit_or_tacit(searched, label).verdict == "absent here"
    assert explicit_or_tacit(unused, label).verdict == "decodable, not used"
