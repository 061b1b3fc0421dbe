"""Steering, directions and their selection: closed forms, planted behaviour, side effects counted."""

import json
import math

import pytest
import torch
from intervention_models import tied_dictionary, tiny_dictionary, tiny_model, unit
from models.tiny_models import texts

from sparsight.cli.app import main
from sparsight.dictionaries import TopK
from sparsight.errors import DataError, UndefinedMetric
from sparsight.intervention import (
    NextToken,
    ablate_direction,
    add_direction,
    behaviour_scores,
    difference_in_means,
    leace_direction,
    logistic_direction,
    mean_kl,
    select_direction,
    steer,
    steering,
    top_latents,
    words_score,
)
from sparsight.intervention.steering import repetition
from sparsight.models import Site


def _classes(n=5_000, d=4):
    """Two normal classes of one covariance that is not round: every direction of theory is known."""
    g = torch.Generator().manual_seed(0)
    root = torch.diag(torch.arange(1.0, d + 1)).double()
    shift = torch.ones(d, dtype=torch.float64)
    x, y = (torch.randn(n, d, generator=g, dtype=torch.float64) @ root for _ in range(2))
    return x + shift, y, shift, root @ root


def test_the_difference_in_means_and_the_eraser_s_direction_are_those_of_theory():
    positive, negative, shift, covariance = _classes()
    found = difference_in_means(positive, negative)
    torch.testing.assert_close(found.vector, positive.mean(dim=0) - negative.mean(dim=0))
    assert found.cosine(shift) > 0.99
    best = torch.linalg.solve(covariance, shift)  # linear discriminant
    for direction in (
        leace_direction(positive, negative, shrinkage=0.0),
        logistic_direction(positive, negative, penalty=1e-6),
    ):
        assert direction.cosine(best) > 0.995
        assert direction.cosine(shift) < 0.9
        assert direction.norm == pytest.approx(1)


def test_the_logistic_direction_is_a_stationary_point():
    positive, negative, _, _ = _classes(200)
    found = logistic_direction(positive, negative, penalty=0.1)
    again = logistic_direction(positive.flip(0), negative.flip(0), penalty=0.1)
    torch.testing.assert_close(found.vector, again.vector, rtol=0, atol=1e-8)
    turned = torch.linalg.qr(torch.stack([unit(4, i) for i in range(4)])).Q
    rotated = logistic_direction(positive @ turned, negative @ turned, penalty=0.1)
    torch.testing.assert_close(rotated.vector, found.vector @ turned, rtol=0, atol=1e-7)
    # Under a penalty that outweighs all else the weights are the gradient at 0: the difference in means.
    short = logistic_direction(positive, negative, penalty=1e6)
    assert short.cosine(difference_in_means(positive, negative)) == pytest.approx(1, abs=1e-9)


def test_equal_means_have_no_direction():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with pytest.raises(DataError, match="equal"):
        difference_in_means(x, x)
    with pytest.raises(DataError, match="one width"):
        difference_in_means(x, x[:0])


def test_the_top_latent_is_the_one_whose_atom_was_added():
    dictionary = TopK(8, k=3).build(6, torch.Generator().manual_seed(2)).double()
    g = torch.Generator().manual_seed(3)
    negative = torch.randn(200, 6, generator=g, dtype=torch.float64)
    positive = negative + 9 * dictionary.atoms[5].detach()
    assert top_latents(dictionary, positive, negative, 1)[0][0] == 5
    with pytest.raises(ValueError, match="n must be between 1 and n_latents=8"):
        top_latents(dictionary, positive, negative, 9)


def test_log_odds_of_a_set_are_exact_and_finite_at_extremes():
    logits = torch.tensor([[0.0, math.log(3.0), math.log(2.0)], [900.0, -900.0, 0.0]], dtype=torch.float64)
    odds = NextToken((1,)).log_odds(logits)
    torch.testing.assert_close(odds, torch.tensor([0.0, -1800.0], dtype=torch.float64))
    against = NextToken((1,), (2,)).log_odds(logits)
    torch.testing.assert_close(against, torch.tensor([math.log(1.5), -900.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="disjoint"):
        NextToken((1,), (1,))


def test_selection_finds_the_layer_and_token_where_the_behaviour_was_planted():
    """Prompts differ in their last word only, so the last token's stream is the place."""
    lm = tiny_model("llama")
    words = [f"w{i}" for i in range(10, 40)]
    prompts = [f"{a} {b} w{c}" for a, b, c in zip(words, words[::-1], [1, 2] * 15, strict=True)]
    positive, negative = prompts[::2], prompts[1::2]
    ids = lm.logits(lm.tokenize(positive))[:, -1].mean(dim=0).sub(lm.logits(lm.tokenize(negative))[:, -1].mean(dim=0))
    behaviour = NextToken((int(ids.argmax()),), (int(ids.argmin()),))
    direction, record = select_direction(
        lm,
        *(lm.tokenize(part[:10]) for part in (positive, negative)),
        *(lm.tokenize(part[10:]) for part in (positive, negative)),
        behaviour,
        n_tokens=2,
        sites=[Site(0, "resid_post"), Site(1, "resid_mid")],
        max_kl=100,
        max_depth=1,
        least_induced=-100,
    )
    chosen = record.candidates[record.chosen]
    kept = [c for c in record.candidates if not c.rejected]
    assert chosen.back == 0
    assert direction.site == Site.parse(chosen.site)
    assert chosen.ablated == min(c.ablated for c in kept)
    assert record.baseline_positive > record.baseline_negative


def test_each_published_filter_rejects_by_its_own_number_and_the_order_of_prompts_does_not_matter():
    lm = tiny_model("llama")
    parts = [[f"w{i} w{1 + j % 2}" for i in range(10 + 4 * j, 14 + 4 * j)] for j in range(4)]
    behaviour = NextToken((7,), (9,))

    def selected(order=slice(None), **filters):
        prompts = [lm.tokenize(part[order]) for part in parts]
        free = {"max_depth": 1, "max_kl": 1e9, "least_induced": -1e9}
        return select_direction(lm, *prompts, behaviour, n_tokens=1, **free | filters)

    direction, free = selected()
    assert [c.rejected for c in free.candidates] == ["", ""]
    chosen, (positive, negative) = free.candidates[free.chosen], map(lm.tokenize, parts[2:])
    ablation, addition = ablate_direction(lm, direction), add_direction(lm, direction)
    assert chosen.ablated == pytest.approx(float(behaviour_scores(lm, positive, behaviour, ablation).mean()))
    assert chosen.induced == pytest.approx(float(behaviour_scores(lm, negative, behaviour, addition).mean()))
    assert chosen.kl == pytest.approx(mean_kl(lm, negative, ablation, last_only=True))
    turned, again = selected(slice(None, None, -1))
    assert again.chosen == free.chosen
    torch.testing.assert_close(turned.vector, direction.vector, rtol=0, atol=1e-12)
    # Before the second of two blocks the depth is one half, and at the bound a site is out.
    assert [c.rejected for c in selected(max_depth=0.5)[1].candidates] == ["", "too deep"]
    for name, bound, reason, sign in (
        ("max_kl", "kl", "too divergent", 1),
        ("least_induced", "induced", "does not induce", -1),
    ):
        values = [getattr(c, bound) for c in free.candidates]
        between = sum(values) / 2
        assert abs(values[0] - values[1]) > 1e-6
        found = selected(**{name: between})[1].candidates
        assert [c.rejected for c in found] == [reason if sign * (v - between) > 0 else "" for v in values]
    with pytest.raises(DataError, match="2 too divergent"):
        selected(max_kl=-1)


def test_steering_a_latent_that_reads_its_projection_moves_no_other_and_is_read_again():
    """Orthonormal atoms that are their own encoder: with `p` the projection, `max(p, 0)` becomes `c + min(p, 0)`."""
    lm, dictionary = tiny_model("llama"), tied_dictionary()
    neutral, site = texts(6, seed=5, shortest=4), Site(0, "resid_post")
    score = words_score(["w1"])
    (dose,) = steer(lm, dictionary, ["w1"], neutral, score, [2.0], latent=5, max_new_tokens=2).doses
    tokens = lm.tokenize(neutral)
    x = lm.activations(tokens, [site])[site][tokens.counted]
    along = x @ dictionary.atoms[5].detach()
    c = 2 * float(along.max())
    assert dose.value == pytest.approx(c)
    assert dose.moved == 0
    assert dose.reencoded == pytest.approx(float((c + along.clamp_max(0)).clamp_min(0).mean()) / c)
    size = (c - along.clamp_min(0)).abs().mean()
    assert dose.relative == pytest.approx(float(size / x.norm(dim=1).mean()))


def test_the_divergence_is_that_of_the_clean_from_the_edited_distribution():
    lm = tiny_model("llama")
    tokens, edits = lm.tokenize(["w1 w2 w3", "w4"]), add_direction(lm, 9 * unit(16, 3), Site(0, "resid_post"))
    clean, edited = (lm.logits(tokens, edits=e).log_softmax(dim=-1) for e in (None, edits))
    each = (clean.exp() * (clean - edited)).sum(dim=-1)
    assert mean_kl(lm, tokens, edits) == pytest.approx(float(each[tokens.mask].mean()))
    assert mean_kl(lm, tokens, edits, last_only=True) == pytest.approx(float((each[0, 3] + each[1, 1]) / 2))


def test_adding_moves_one_mean_to_the_other_at_the_last_site():
    lm = tiny_model("llama")
    last = Site(1, "resid_post")
    ours, theirs = lm.tokenize(texts(4, seed=0)), lm.tokenize(texts(4, seed=1))
    x, y = (lm.activations(t, [last])[last][t.mask] for t in (ours, theirs))
    direction = difference_in_means(x, y, site=last, model=lm.name)
    moved = lm.activations(theirs, [last], edits=add_direction(lm, direction))[last][theirs.mask]
    torch.testing.assert_close(moved.mean(dim=0), x.mean(dim=0), rtol=0, atol=1e-12)


def test_steering_at_strength_zero_of_a_direction_is_the_model_itself():
    lm = tiny_model("llama")
    direction = difference_in_means(torch.ones(2, 16).double(), torch.zeros(2, 16).double(), site=Site(0, "resid_post"))
    neutral = texts(6, seed=2, shortest=4)
    words = [f"w{i}" for i in range(60)]
    found = steer(lm, direction, ["w1 w2", "w3"], neutral, words_score(words), [0.0, 50.0], max_new_tokens=5)
    off, on = found.doses
    assert (off.relative, off.kl, off.loss_added) == (0, 0, 0)
    tokens = lm.tokenize(neutral)
    x = lm.activations(tokens, [direction.site])[direction.site][tokens.counted]
    assert on.relative == pytest.approx(50 * direction.norm / float(x.norm(dim=1).mean()))
    assert on.kl > 0.01
    assert on.loss == pytest.approx(
        float(lm.loss(lm.tokenize(neutral), edits=add_direction(lm, direction, strength=50.0)))
    )
    assert off.behaviour == found.baseline


def test_a_clamped_latent_is_measured_in_its_largest_value():
    lm, dictionary = tiny_model("llama"), tiny_dictionary()
    found = steer(
        lm,
        dictionary,
        ["w1 w2"],
        texts(6, seed=3, shortest=4),
        words_score(["w1"], ["w2"]),
        [1.0, 4.0],
        latent=3,
        max_new_tokens=3,
        n_controls=1,
    )
    assert found.doses[1].value == pytest.approx(4 * found.unit)
    assert found.doses[0].moved is not None
    assert found.doses[0].control is not None
    with pytest.raises(ValueError, match="name the latent"):
        steer(lm, dictionary, ["w1"], ["w1 w2"], words_score(["w1"]))
    silent = TopK(8, k=1).build(16, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        silent.b_enc[2] = -1e6
    with pytest.raises(UndefinedMetric, match="never active"):
        steer(lm, silent, ["w1"], ["w1 w2"], words_score(["w1"]), latent=2, site="0.resid_post")


def test_random_directions_change_activations_by_as_much_as_what_they_are_held_against(monkeypatch):
    lm, added = tiny_model("llama"), []

    def spy(lm, direction, site, *, strength, where):
        added.append(strength * float(direction.norm()))
        return add_direction(lm, direction, site, strength=strength, where=where)

    monkeypatch.setattr(steering, "add_direction", spy)
    neutral = texts(4, seed=6, shortest=4)
    found = steer(
        *(lm, tiny_dictionary(), ["w1"], neutral, words_score(["w1"]), [2.0]), latent=3, max_new_tokens=1, n_controls=3
    )
    tokens, site = lm.tokenize(neutral), Site(0, "resid_post")
    norm = float(lm.activations(tokens, [site])[site][tokens.counted].norm(dim=1).mean())
    assert added == [pytest.approx(found.doses[0].relative * norm, rel=1e-5)] * 3


def test_repetition_counts_pairs_that_came_before():
    assert repetition(["a", "b", "a", "b", "a"]) == pytest.approx(1 - 2 / 4)
    assert repetition(["a", "b", "c", "d"]) == 0
    assert words_score(["x"], ["y"])(["x", "x", "y", "z"]) == pytest.approx(2 / 3)


def test_the_command_steers_the_organism(tmp_path, capsys):
    dictionary = TopK(16, k=4).build(128, torch.Generator().manual_seed(0))
    dictionary.site, dictionary.model = Site(2, "resid_post"), "organism"
    dictionary.save(tmp_path / "d")
    (tmp_path / "neutral.txt").write_text("the cook sees the fish at the river .")
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("steer", str(tmp_path / "d"), "--latent", "1", "--prompt", "the cook sees", "--words", "der die"),
                *("--strength", "1", "--new-tokens", "3", "--controls", "0", "--json", "--quiet", "--device", "cpu"),
                *("--text", str(tmp_path / "neutral.txt")),
            ]
        )
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["doses"][0]["strength"] == 1
    assert found["steered"] == "latent 1"


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ({"latent": "16"}, 2, "latents must be in [0, 16), got [16]"),
        ({"strength": "nan"}, 2, "values of latents must be finite"),
        ({"strength": "1e38"}, 2, "values of latents must be finite in torch.float32"),
        ({"model": "organism-backdoored"}, 1, "made for model organism, got organism-backdoored"),
        ({"width": 64}, 2, "width 64, activations at 2.resid_post have 128"),
    ],
)
def test_the_command_refuses_in_one_line_what_does_not_fit(wrong, code, said, tmp_path, capsys):
    dictionary = TopK(16, k=4).build(wrong.get("width", 128), torch.Generator().manual_seed(0))
    dictionary.site, dictionary.model = Site(2, "resid_post"), "organism"
    dictionary.save(tmp_path / "d")
    (tmp_path / "neutral.txt").write_text("the cook sees the fish .")
    with pytest.raises(SystemExit) as end:
        main(
            [
                *(
                    "steer",
                    str(tmp_path / "d"),
                    "--latent",
                    wrong.get("latent", "1"),
                    "--prompt",
                    "the",
                    "--words",
                    "a",
                ),
                *("--strength", wrong.get("strength", "1"), "--model", wrong.get("model", "organism")),
                *("--text", str(tmp_path / "neutral.txt"), "--controls", "0", "--quiet", "--device", "cpu"),
            ]
        )
    assert end.value.code == code
    assert said in capsys.readouterr().err


def test_scores_of_behaviour_use_the_last_real_token():
    lm = tiny_model("llama")
    both = behaviour_scores(lm, lm.tokenize(["w1 w2 w3", "w4"]), NextToken((7,)))
    alone = behaviour_scores(lm, lm.tokenize(["w4"]), NextToken((7,)))
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-10)
