"""Latent perturbation search: linear maps have known optima, batches change nothing, and the model is left alone."""

import json
import math
from dataclasses import asdict, replace
from inspect import signature

import pytest
import torch
from intervention_models import tied_dictionary, tiny_model, unit
from models.tiny_models import count_hooks, texts
from safetensors.torch import load_file

from sparsight.cli.app import main
from sparsight.cli.elicit import elicit as command
from sparsight.dictionaries import TopK
from sparsight.errors import DataError, UndefinedMetric
from sparsight.intervention import Direction
from sparsight.intervention.elicit import (
    Adapters,
    Elicitation,
    Reach,
    Search,
    elicit,
    elicit_adapters,
    find_adapters,
    find_vectors,
    first_singular_vectors,
    run,
)
from sparsight.intervention.elicit.clusters import cluster_completions
from sparsight.intervention.elicit.radius import find_radius, knee
from sparsight.intervention.elicit.reach import Power
from sparsight.intervention.elicit.record import RadiusPoint
from sparsight.intervention.elicit.run import completions_under
from sparsight.intervention.elicit.search import _start
from sparsight.models import Site


def _linear(d: int = 10, tokens: int = 3, seed: int = 0):
    """A target that is linear in the perturbation, `Z_t = A_t theta`, with well separated singular values."""
    g = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(tokens * 8, d, generator=g, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64)).Q
    singular = 0.8 ** torch.arange(d, dtype=torch.float64) * 3
    matrix = (left * singular @ right.T).view(tokens, 8, d)
    counted = torch.ones(1, tokens, dtype=torch.bool)

    def objective(power: Power):
        return lambda theta: power(torch.einsum("thd,vd->vth", matrix, theta).unsqueeze(1), counted)

    return objective, right, singular


@pytest.mark.parametrize("method", ["adam", "power"])
def test_on_a_linear_map_the_best_vector_is_the_top_singular_vector(method):
    objective, right, singular = _linear()
    search = Search(n_vectors=4, radius=2.0, steps=300, method=method, lr=0.2)
    theta = find_vectors(objective(Power(2, 1)), 10, search, dtype=torch.float64)
    assert ((theta @ right[:, 0]).abs() / 2 > 0.9999).all()
    torch.testing.assert_close(objective(Power(2, 1))(theta), (4 * singular[0] ** 2).expand(4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["adam", "power"])
def test_one_after_another_they_are_the_singular_vectors_in_order(method):
    objective, right, _ = _linear()
    search = Search(n_vectors=4, steps=300, method=method, orthogonal=True, lr=0.2)
    theta = find_vectors(objective(Power(2, 2)), 10, search, dtype=torch.float64)
    torch.testing.assert_close((theta @ right[:, :4]).abs(), torch.eye(4, dtype=torch.float64), rtol=0, atol=5e-3)
    torch.testing.assert_close(theta @ theta.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_high_power_picks_the_token_with_the_largest_gain():
    """Token 0 has the largest single gain, tokens 1 and 2 share another direction that moves more in total."""
    matrix = torch.zeros(3, 2, 2, dtype=torch.float64)
    matrix[0, 0, 0], matrix[1, 0, 1], matrix[2, 0, 1] = 1.2, 1.0, 1.0
    counted = torch.ones(1, 3, dtype=torch.bool)

    def objective(p):
        return lambda theta: Power(p, p)(torch.einsum("thd,vd->vth", matrix, theta).unsqueeze(1), counted)

    best = {p: find_vectors(objective(p), 2, Search(n_vectors=8, lr=0.3), dtype=torch.float64) for p in (2, 16)}
    assert (best[2][:, 1].abs() > 0.999).all()  # 2 x 1 against 1.44
    values = objective(16)(best[16])
    assert best[16][values.argmax(), 0].abs() > 0.98  # 1.2^16 against 2


def test_the_norm_is_taken_over_the_width_and_not_over_tokens():
    moved = torch.randn(2, 1, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    counted = torch.ones(1, 5, dtype=torch.bool)
    by_hand = torch.stack([sum(moved[v, 0, t].norm() ** 4 for t in range(5)) for v in range(2)])
    torch.testing.assert_close(Power(4, 1)(moved, counted), by_hand)
    assert not torch.allclose(moved.square().sum(dim=2).pow(2).sum(dim=(1, 2)), by_hand)
    shuffled = moved[:, :, torch.tensor([3, 1, 4, 0, 2])]
    torch.testing.assert_close(Power(4, 4)(shuffled, counted), Power(4, 4)(moved, counted))


def test_with_several_prompts_the_root_decides_between_their_sum_and_the_strongest():
    """One gains a along an axis, the other b along another: at `q = 2` tangent b/a is best, at `q = 1` an axis."""
    a, b = 1.0, 0.75
    gains = torch.diag(torch.tensor([a, b], dtype=torch.float64))[:, None, None]  # [prompts, 1, 1, d]
    counted = torch.ones(2, 1, dtype=torch.bool)

    def best(q):
        def objective(theta):
            return Power(2, q)((gains * theta[:, None, None, None]).sum(dim=-1), counted)

        theta = find_vectors(objective, 2, Search(n_vectors=6, radius=2.0, lr=0.2), dtype=torch.float64)
        return theta[objective(theta).argmax()].abs(), float(objective(theta).max())

    theta, value = best(2)
    torch.testing.assert_close(theta, 2 * torch.tensor([a, b], dtype=torch.float64) / 1.25, rtol=0, atol=1e-2)
    assert value == pytest.approx(2 * 1.25, rel=1e-4)
    theta, value = best(1)
    torch.testing.assert_close(theta, torch.tensor([2.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-2)
    assert value == pytest.approx(4 * a**2, rel=1e-4)


def test_a_step_turns_a_vector_by_the_angle_it_is_told_along_the_great_circle_to_its_gradient():
    """Tangent of the first angle: `lr`; what the gradient has along the vector itself takes no share of it."""
    to = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    search = Search(n_vectors=1, radius=2.0, steps=1, lr=0.1, seed=4)
    (found,) = find_vectors(lambda theta: theta @ to, 3, search, dtype=torch.float64)
    start = torch.nn.functional.normalize(_start(3, 4, 0), dim=0)
    across = torch.nn.functional.normalize(to - (to @ start) * start, dim=0)
    angle = math.atan(0.1)
    torch.testing.assert_close(found, 2 * (math.cos(angle) * start + math.sin(angle) * across), rtol=0, atol=1e-12)


def test_text_alone_is_perturbed_and_counted():
    lm = tiny_model("llama")
    tokens = lm.tokenize(["w1 w2 w3", "w4"])  # one special token, and padding behind the second
    place, theta = ("0.mlp_out", "1.resid_post"), 3 * unit(16, 1)[None]
    reach = Reach(lm, tokens, *place, power=Power(2, 1))
    text = torch.tensor([[0, 1, 1, 1], [0, 1, 0, 0]], dtype=torch.bool)
    added = reach.edit(theta)(torch.zeros(2, 4, 16, dtype=torch.float64))
    torch.testing.assert_close(added, text[..., None] * theta[0])
    moved = lm.activations(tokens, [reach.target], edits={reach.source: reach.edit(theta)})[reach.target]
    squares = (moved - lm.activations(tokens, [reach.target])[reach.target]).square().sum(dim=2)
    torch.testing.assert_close(reach(theta)[0], squares[text].sum())
    last = Reach(lm, tokens, *place, power=Power(2, 1), last=1)
    torch.testing.assert_close(last(theta)[0], squares[0, 3] + squares[1, 1])


def test_a_batch_finds_what_each_vector_finds_alone():
    objective, _, _ = _linear()
    search = {"radius": 1.5, "steps": 40}
    together = find_vectors(objective(Power(4, 1)), 10, Search(n_vectors=5, **search), dtype=torch.float64)
    for i, found in enumerate(together):
        alone = Search(n_vectors=1, first=i, **search)
        torch.testing.assert_close(
            found, find_vectors(objective(Power(4, 1)), 10, alone, dtype=torch.float64)[0], rtol=0, atol=1e-12
        )
    assert torch.pdist(together).min() > 1e-2  # they started apart


def test_in_a_model_a_batch_of_vectors_is_each_alone_and_chunks_do_not_matter():
    lm = tiny_model("llama")
    tokens = lm.tokenize(["w1 w2 w3", "w4 w5"])
    search = {"radius": 2.0, "steps": 15}
    whole = Reach(lm, tokens, "0.mlp_out", "1.resid_post")
    pieces = Reach(lm, tokens, "0.mlp_out", "1.resid_post", batch_rows=2)
    together = find_vectors(whole, 16, Search(n_vectors=3, **search), dtype=torch.float64)
    torch.testing.assert_close(
        find_vectors(pieces, 16, Search(n_vectors=3, **search), dtype=torch.float64), together, rtol=0, atol=1e-6
    )
    for i in range(3):
        alone = find_vectors(whole, 16, Search(n_vectors=1, first=i, **search), dtype=torch.float64)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)


def test_small_perturbations_of_a_model_give_the_singular_vectors_of_its_jacobian():
    lm = tiny_model("gpt2")
    reach = Reach(lm, lm.tokenize(["w1 w2 w3"]), "0.mlp_out", "1.resid_post")
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(
            lambda theta: lm.activations(reach.tokens, [reach.target], edits={reach.source: reach.edit(theta[None])})[
                reach.target
            ][reach.counted].flatten(),
            torch.zeros(16, dtype=torch.float64),
        )
    right = torch.linalg.svd(jacobian).Vh
    found = first_singular_vectors(reach, 2, steps=60)
    assert (found * right[:2]).sum(dim=1).abs().min() > 0.99


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # gpt2 has a bias where perturbations are added
def test_nothing_of_the_model_is_overwritten_and_no_perturbation_is_the_model(name):
    lm = tiny_model(name)
    tokens = lm.tokenize(texts(2, seed=0))
    clean, hooks = lm.logits(tokens), count_hooks(lm.model)
    weights = {key: value.clone() for key, value in lm.model.state_dict().items()}
    reach = Reach(lm, tokens, "0.mlp_out", "1.resid_post")
    find_vectors(reach, 16, Search(n_vectors=2, steps=3), dtype=torch.float64)
    assert torch.equal(lm.logits(tokens, edits={reach.source: reach.edit(torch.zeros(1, 16))}), clean)
    assert torch.equal(lm.logits(tokens), clean)
    assert all(torch.equal(value, weights[key]) for key, value in lm.model.state_dict().items())
    assert count_hooks(lm.model) == hooks
    assert float(reach(torch.zeros(1, 16, dtype=torch.float64))) == 0


def test_adapters_move_more_than_their_starts_and_stay_of_unit_norm():
    lm = tiny_model("llama")
    reach = Reach(lm, lm.tokenize(["w1 w2 w3"]), "0.mlp_out", "1.resid_post")

    def moved(steps):
        found = find_adapters(reach, Search(n_vectors=2, radius=3.0, steps=steps, lr=0.2), rank=2)
        for units in (found.read, found.write):
            torch.testing.assert_close(units.norm(dim=2), torch.ones(2, 2, dtype=torch.float64))
        return reach(found)

    assert (moved(60) > 1.3 * moved(1)).all()


def test_an_adapter_that_reads_what_every_token_has_is_a_vector():
    """With `a` along a token's own activation `x`, `R (a . x/|x|) b` is `R b`; across it, nothing."""
    x = torch.randn(2, 1, 1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    read = torch.nn.functional.normalize(x[:, 0], dim=2)
    write = torch.stack([unit(6, 1), unit(6, 2)])[:, None]
    torch.testing.assert_close(Adapters(read, write, 2.5).added(x)[:, 0], 2.5 * write)
    across = torch.nn.functional.normalize(write - (write * read).sum(dim=2, keepdim=True) * read, dim=2)
    assert Adapters(across, write, 2.5).added(x).abs().max() < 1e-12
    both = Adapters(torch.cat([read, across], dim=1), torch.cat([write, read], dim=1), 2.5)
    torch.testing.assert_close(both.added(x)[:, 0], 2.5 * write)
    torch.testing.assert_close(both.likeness().diagonal(), torch.ones(2, dtype=torch.float64))


def test_found_adapters_act_while_the_model_writes_and_are_named_by_what_they_write(tmp_path):
    lm = tiny_model("llama")
    search = Search(n_vectors=2, steps=3)
    known = {"x": unit(16, 5)}
    place = ("0.mlp_out", "1.resid_post")
    record, found = elicit_adapters(
        lm, ["w1 w2", "w3"], *place, search, rank=2, radius=40.0, max_new_tokens=3, known=known, out=tmp_path
    )
    assert record.settings["adapter_rank"] == 2
    reach = Reach(lm, lm.tokenize(["w1 w2", "w3"]), *place)
    edits = {reach.source: reach.edit(found)}
    first = lm.logits(reach.repeated(2), edits=edits)[torch.arange(4), torch.tensor([2, 1, 2, 1])].argmax(dim=1)
    said = completions_under(reach, found, 3)
    assert [ids[0] for rows in said for ids in rows] == first.tolist()
    for vector in record.vectors:
        cosines = found.write[vector.number] @ known["x"]
        assert vector.known[0].cosine == pytest.approx(float(cosines[cosines.abs().argmax()]))
    assert load_file(tmp_path / "adapters.safetensors").keys() == {"read", "write"}
    with pytest.raises(ValueError, match="adapters are searched with"):
        elicit_adapters(lm, ["w1 w2"], *place, Search(method="power"), radius=1.0)


def test_kinds_that_differ_most_from_the_model_s_own_completions_come_first():
    prompts, place = ["w1 w2", "w3", "w4 w5"], ("0.mlp_out", "1.resid_post")
    search = Search(n_vectors=6, steps=2)
    record, _ = elicit(tiny_model("llama"), prompts, *place, search, radius=4.0, max_new_tokens=2)
    kinds = [v.cluster for v in record.vectors]
    unlike = [sum(1 - v.same for v in record.vectors if v.cluster == kind) / kinds.count(kind) for kind in kinds]
    assert unlike == sorted(unlike, reverse=True)
    assert unlike[0] > unlike[-1]


def test_completions_that_share_most_tokens_are_of_one_kind():
    kinds = cluster_completions([[[1, 2, 3]], [[9, 9, 9]], [[3, 2, 1]], [[1, 2, 3, 4]], [[9, 8, 7]]])
    assert kinds == [0, 1, 0, 0, 2]


def test_the_knee_is_where_the_divergence_begins_to_rise():
    curve = [0.001, 0.002, 0.004, 0.01, 0.05, 2.0, 4.0, 5.0]
    points = [RadiusPoint(radius=2.0**i, relative=1.0, kl=kl) for i, kl in enumerate(curve)]
    assert knee(points).radius == 16
    # Over the radius itself, and not its logarithm, 4 would be furthest below the chord.
    curve = [0.0, 0.02, 0.1, 1.5, 4.2, 10.0]
    assert knee([RadiusPoint(radius=2.0**i, relative=1.0, kl=kl) for i, kl in enumerate(curve)]).radius == 8
    with pytest.raises(UndefinedMetric, match="does not rise"):
        knee([RadiusPoint(radius=2.0**i, relative=1.0, kl=0.0) for i in range(4)])


def test_wrong_searches_are_refused():
    lm = tiny_model("llama")
    tokens = lm.tokenize("w1 w2")
    with pytest.raises(ValueError, match="radius must be positive"):
        Search(radius=0)
    with pytest.raises(ValueError, match=r"source 1.resid_post and target 0.resid_post"):
        Reach(lm, tokens, "1.resid_post", "0.resid_post")
    with pytest.raises(ValueError, match="p >= 2"):
        Power(1)
    with pytest.raises(ValueError, match="at most 16 vectors"):
        find_vectors(Reach(lm, tokens, "0.mlp_out", "1.mlp_out"), 16, Search(n_vectors=17, orthogonal=True))
    with pytest.raises(DataError, match="no slope"):
        find_vectors(lambda theta: (theta * 0).sum(dim=1), 4, Search())
    with pytest.raises(ValueError, match="radius must be positive"):
        elicit(lm, ["w1 w2"], "0.mlp_out", "1.mlp_out", radius=float("nan") * unit(1, 0)[0].item())


def test_what_cannot_be_compared_is_refused_before_the_search(monkeypatch):
    def searched(*_, **__):
        raise AssertionError("searched before it was refused")

    monkeypatch.setattr(run, "find_vectors", searched)
    lm, place = tiny_model("llama"), ("0.mlp_out", "1.resid_post")
    narrow, other = tied_dictionary(d=8), tied_dictionary()
    other.model = "other"
    for named, error, said in (
        ({"dictionary": narrow}, ValueError, "dictionary has width 8, activations at 0.mlp_out have 16"),
        ({"dictionary": other}, DataError, "made for model other"),
        ({"known": {"r": torch.ones(8)}}, ValueError, "direction has width 8, activations at 0.mlp_out"),
        ({"known": {"r": Direction(torch.ones(16), None, "other")}}, DataError, "found in other"),
    ):
        with pytest.raises(error, match=said):
            elicit(lm, ["w1 w2"], *place, radius=1.0, **named)


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        (("--radius", "0"), 2, "radius must be positive"),
        (("--source", "3.resid_post", "--target", "1.resid_post"), 2, "target must be computed after the source"),
        (("--source", "9.resid_post"), 1, "no site 9.resid_post"),
        (("--dictionary", "NARROW"), 2, "width 64, activations at 1.resid_post have 128"),
    ],
)
def test_the_command_refuses_in_one_line_what_cannot_be_searched(wrong, code, said, tmp_path, capsys):
    if "NARROW" in wrong:
        TopK(16, k=4).build(64, torch.Generator().manual_seed(0)).save(tmp_path / "d")
        wrong = ("--dictionary", str(tmp_path / "d"), "--radius", "1")
    with pytest.raises(SystemExit) as end:
        main(["elicit", "--prompt", "the cook sees", "--quiet", "--device", "cpu", *wrong])
    assert end.value.code == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_command_searches_the_organism_and_says_what_it_found(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("elicit", "--prompt", "the cook sees", "--vectors", "2", "--steps", "2", "--radius", "200", "--json"),
                *("--quiet", "--out", str(tmp_path / "found"), "--new-tokens", "4", "--device", "cpu"),
            ]
        )
    assert end.value.code == 0
    record = json.loads(capsys.readouterr().out)
    assert [v["number"] for v in sorted(record["vectors"], key=lambda v: v["number"])] == [0, 1]
    assert all(v["objective"] > v["random"] * 0.5 for v in record["vectors"])
    assert (tmp_path / "found" / "vectors.safetensors").is_file()
    assert Site.parse(record["source"]) == Site(1, "resid_post")


def test_the_command_searches_adapters(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("elicit", "--prompt", "the cook sees", "--vectors", "2", "--steps", "2", "--radius", "200"),
                *("--adapter-rank", "1", "--quiet", "--out", str(tmp_path), "--new-tokens", "3", "--device", "cpu"),
            ]
        )
    assert end.value.code == 0
    assert "2 adapters of rank 1" in " ".join(capsys.readouterr().out.split())
    assert load_file(tmp_path / "adapters.safetensors")["read"].shape == (2, 1, 128)


def test_the_radius_grid_is_relative_to_the_activations():
    lm = tiny_model("llama")
    reach = Reach(lm, lm.tokenize(["w1 w2 w3"]), "0.resid_post", "1.resid_post")
    points = find_radius(reach, Search(), shares=[0.1, 1.0], n_vectors=2, steps=2)
    assert points[1].radius / points[0].radius == pytest.approx(10)
    assert points[1].kl > points[0].kl > 0


def test_settings_come_whole_or_by_name_and_the_command_has_the_same_defaults():
    lm, place, search = tiny_model("llama"), ("0.mlp_out", "1.resid_post"), Search(n_vectors=2, steps=2)
    settings = Elicitation(radius=4.0, max_new_tokens=2, last=1)
    whole, _ = elicit(lm, ["w1 w2"], *place, search, settings)
    named, _ = elicit(lm, ["w1 w2"], *place, search, radius=4.0, max_new_tokens=2, last=1)
    mixed, _ = elicit(lm, ["w1 w2"], *place, search, replace(settings, last=None), last=1)
    assert whole == named == mixed
    assert whole != elicit(lm, ["w1 w2"], *place, search, settings, last=None)[0]
    with pytest.raises(TypeError, match="unexpected keyword argument 'strength'"):
        elicit(lm, ["w1 w2"], *place, search, settings, strength=2)
    ours = {**asdict(Search()), **asdict(Elicitation())}
    typed = {name: one.default for name, one in signature(command).parameters.items()}
    for name, here in {"vectors": "n_vectors", "new_tokens": "max_new_tokens"}.items():
        typed[here] = typed.pop(name)
    both = sorted(ours.keys() & typed.keys())
    assert len(both) == 12, both
    assert [typed[name] for name in both] == [ours[name] for name in both]
