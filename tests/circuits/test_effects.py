"""Effects: identities with answers known beforehand, on tiny random models in float64."""

from collections.abc import Iterator

import pytest
import torch
from circuit_models import KeepFloat64, dictionary_at, tiny
from torch import Tensor

from sparsight.circuits import (
    DirectionNodes,
    Effects,
    Metric,
    NeuronNodes,
    SmoothedNodes,
    latent_effects,
    log_probability,
    logit_difference,
    nodes_of,
    probe,
)
from sparsight.circuits.gates import gates_of
from sparsight.dictionaries import Gated, JumpReLU, Pursuit, ReLU, TopK, Transcoder
from sparsight.errors import UndefinedMetric
from sparsight.models import LanguageModel, Site, Tokens

MID, POST, OUT = Site(0, "resid_mid"), Site(0, "resid_post"), Site(1, "mlp_out")
every_model = pytest.mark.parametrize("name", ["gpt2", "gemma2"])


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with KeepFloat64():
        yield


def pair(lm: LanguageModel) -> tuple[Tokens, Tokens]:
    return lm.tokenize(["w1 w2 w3 w4", "w5 w6 w7"]), lm.tokenize(["w1 w8 w3 w4", "w5 w9 w7"])


def difference(tokens: Tokens) -> Metric:
    n = len(tokens)
    return logit_difference(tokens, torch.arange(10, 10 + n), torch.arange(20, 20 + n))


TOPK = TopK(40, 5)


def run(lm: LanguageModel, *, sites: tuple[Site, ...] = (POST, OUT), config=TOPK, n: int = 2, **settings) -> Effects:
    clean, corrupted = (tokens[:n] for tokens in pair(lm))
    dictionaries = {site: dictionary_at(lm, site, config, seed=i) for i, site in enumerate(sites)}
    settings.setdefault("metric", difference(clean))
    return latent_effects(lm, dictionaries, clean, corrupted, **settings)


def linear_metric(lm: LanguageModel, tokens: Tokens, site: Site) -> Metric:
    weights = torch.randn(lm.width(site), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return probe(tokens, site, weights)


@every_model
def test_in_a_linear_network_all_methods_agree_and_account_for_everything(name: str):
    """From resid_mid to the stream after the last block nothing but additions remains if MLPs are cut out."""
    lm = tiny(name)
    clean, corrupted = pair(lm)
    last = Site(1, "resid_post")
    dictionary = dictionary_at(lm, last, JumpReLU(40, target_l0=5))
    found = [
        latent_effects(lm, dictionary, clean, corrupted, linear_metric(lm, clean, last), method=method)
        for method in ("exact", "attribution", "integrated_gradients")
    ]
    for effects in found:
        assert float(effects.completeness.abs().max()) < 1e-12
        assert effects.regime == "smooth path"
        torch.testing.assert_close(effects.latents.to_dense(), found[0].latents.to_dense(), rtol=0, atol=1e-13)
        torch.testing.assert_close(effects.errors, found[0].errors, rtol=0, atol=1e-13)
    assert float(found[0].total.abs().min()) > 0.1


def quadratic_metric(lm: LanguageModel, tokens: Tokens, site: Site) -> Metric:
    linear = linear_metric(lm, tokens, site)
    return Metric(lambda x, rows: linear.judge(x, rows).square(), site)


def test_of_a_quadratic_one_midpoint_is_exact_and_the_left_rule_is_off_by_half_a_step():
    lm = tiny("gpt2")
    clean, corrupted = pair(lm)
    last = Site(1, "resid_post")
    dictionary, metric = dictionary_at(lm, last, TopK(40, 5)), quadratic_metric(lm, clean, last)
    one = latent_effects(lm, dictionary, clean, corrupted, metric, steps=1)
    assert float(one.completeness.abs().max()) < 1e-12
    left = latent_effects(lm, dictionary, clean, corrupted, metric, steps=7, rule="left")
    # g = 2 u u' on the path, with u the probe: g(1) - g(0) = 2 (u_p - u_c)^2.
    linear = latent_effects(lm, dictionary, clean, corrupted, linear_metric(lm, clean, last)).total
    torch.testing.assert_close(left.completeness, -2 * linear.square() / 14, rtol=1e-10, atol=1e-12)


@every_model
def test_smooth_paths_are_complete_to_a_hundred_millionth(name: str):
    effects = run(tiny(name), sites=(OUT, Site(1, "resid_mid")), steps=48, rule="gauss")
    for at in effects.values():
        assert float(at.completeness.abs().max()) < 1e-8
        assert float(at.total.abs().max()) > 0.05
    assert effects.regime == "smooth path"


def test_the_midpoint_rule_is_of_second_order_and_the_left_rule_of_first():
    lm = tiny("gpt2")
    off = {
        rule: [float(run(lm, sites=(MID,), steps=n, rule=rule).completeness.abs().sum()) for n in (16, 32)]
        for rule in ("midpoint", "left")
    }
    assert off["midpoint"][0] / off["midpoint"][1] == pytest.approx(4, rel=0.05)
    assert off["left"][0] / off["left"][1] == pytest.approx(2, rel=0.05)


def test_going_the_other_way_negates_the_effects_of_the_midpoint_rule_alone():
    lm = tiny("gpt2")
    clean, corrupted = pair(lm)
    dictionary, metric = dictionary_at(lm, MID, TopK(40, 5)), difference(clean)
    for rule, symmetric in (("midpoint", True), ("left", False)):
        there = latent_effects(lm, dictionary, clean, corrupted, metric, rule=rule).latents.to_dense()
        back = latent_effects(lm, dictionary, corrupted, clean, metric, rule=rule).latents.to_dense()
        assert torch.allclose(there, -back, rtol=0, atol=1e-12) == symmetric


@every_model
def test_an_exact_effect_is_what_doing_it_by_hand_does(name: str):
    lm = tiny(name)
    clean, corrupted = pair(lm)
    dictionary, metric = dictionary_at(lm, POST, JumpReLU(40, target_l0=5)), difference(clean)
    effects = latent_effects(lm, dictionary, clean, corrupted, metric, method="exact")
    with torch.no_grad():
        x, other = (lm.activations(tokens, [POST])[POST] for tokens in (clean, corrupted))
        change = dictionary.encode_dense(other[1]) - dictionary.encode_dense(x[1])
        token, latent = 2, int(change[2].abs().argmax())

        def edit(stream: Tensor) -> Tensor:
            stream = stream.clone()
            stream[1, token] += change[token, latent] * dictionary.atoms[latent]
            return stream

        rows = torch.arange(2)
        by_hand = metric.judge(lm.logits(clean, edits={POST: edit}), rows) - metric.judge(lm.logits(clean), rows)
    torch.testing.assert_close(effects.latents.to_dense()[1, token, latent], by_hand[1])
    assert float(by_hand[1].abs()) > 1e-3


CONFIGS = [ReLU(40, 0.1), Gated(40, 0.1), JumpReLU(40, target_l0=5), TopK(40, 5), Transcoder(40, 5, skip=True)]


GATED_PATHS = [("gpt2", "dropped", config) for config in CONFIGS] + [
    pytest.param("gemma2", "held", config, marks=() if config is CONFIGS[2] else pytest.mark.slow) for config in CONFIGS
]


@pytest.mark.parametrize(("name", "error", "config"), GATED_PATHS, ids=lambda c: getattr(c, "run_name", c))
def test_with_jumps_counted_paths_through_gates_are_complete(name: str, error: str, config):
    sites = (Site(0, "mlp_out"), OUT) if isinstance(config, Transcoder) else (POST, OUT)
    effects = run(tiny(name), config=config, sites=sites, n=1, error=error, steps=4, batch_size=64)
    assert effects.regime == "gated path"
    assert int(effects[sites[0]].n_flips.sum()) > 0
    assert float(effects[sites[0]].total.abs()) > 0.01
    for at in effects.values():
        assert float(at.completeness.abs().max()) < 1e-8


@pytest.mark.parametrize("config", CONFIGS[1:4], ids=lambda c: c.run_name)
def test_without_counting_jumps_no_number_of_steps_is_enough(config):
    """What is missing tends to minus the sum of the jumps, and stays there."""
    off = [
        float(run(tiny("gpt2"), config=config, n=1, error="dropped", jumps=False, steps=n)[POST].completeness)
        for n in (60, 120)
    ]
    assert abs(off[1]) > 0.01
    assert off[0] == pytest.approx(off[1], rel=0.25)


def test_steeper_and_steeper_gates_hand_out_the_jumps_as_jump_counting_does():
    """Node by node: the limit of integrated gradients through smoothed gates is the one with jumps counted."""
    lm = tiny("gpt2")
    clean, corrupted = (tokens[:1] for tokens in pair(lm))
    hard = nodes_of(
        lm, {site: dictionary_at(lm, site, JumpReLU(40, target_l0=5), seed=i) for i, site in enumerate((POST, OUT))}
    )
    settings = {"metric": difference(clean), "error": "dropped", "batch_size": 256}
    counted = latent_effects(lm, hard, clean, corrupted, steps=4, **settings)[POST]
    plain = latent_effects(lm, hard, clean, corrupted, steps=200, jumps=False, **settings)[POST]
    distances = []
    for width, steps in ((3e-2, 100), (3e-3, 600)):
        smooth = {POST: hard[POST], OUT: SmoothedNodes(hard[OUT], width)}
        found = latent_effects(lm, smooth, clean, corrupted, steps=steps, jumps=False, **settings)[POST]
        # What each node does to the metric through the second dictionary; the first one's nodes are the same.
        distances.append(float((found.latents.to_dense() - counted.latents.to_dense()).abs().max()))
    missed = float((plain.latents.to_dense() - counted.latents.to_dense()).abs().max())
    assert distances[1] < 0.2 * distances[0]
    assert distances[1] < 0.05 * missed


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("method", ["exact", "integrated_gradients"])
def test_ablated_to_zero_or_to_means(ablation: str, method: str):
    """With a linear metric the sum over nodes is the whole, and the whole is the ablated activation's."""
    lm = tiny("gpt2")
    clean, corrupted = pair(lm)
    last = Site(1, "resid_post")
    dictionary, metric = dictionary_at(lm, last, TopK(40, 5)), linear_metric(lm, clean, last)
    others = None if ablation == "zero" else corrupted
    effects = latent_effects(lm, dictionary, clean, others, metric, method=method, ablation=ablation)
    assert float(effects.completeness.abs().max()) < 1e-12
    with torch.no_grad():
        x, reference = (lm.activations(tokens, [last])[last] for tokens in pair(lm))
        # The mean of latents and errors together is the mean activation.
        goal = dictionary.b_dec if ablation == "zero" else reference[corrupted.counted].mean(dim=0)
        ablated = torch.where(clean.counted.unsqueeze(-1), goal, x)
        rows = torch.arange(2)
        torch.testing.assert_close(effects.total, metric.judge(ablated, rows) - metric.judge(x, rows))


def test_neurons_and_directions_go_through_the_same_code():
    lm = tiny("gpt2")
    clean, corrupted = pair(lm)
    act = Site(0, "mlp_act")
    like = torch.zeros(1, dtype=torch.float64)
    directions = torch.randn(4, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    nodes = {act: NeuronNodes(act, 24, like), POST: DirectionNodes(POST, directions)}
    effects = latent_effects(lm, nodes, clean, corrupted, difference(clean), steps=64, rule="gauss")
    assert {at.kind for at in effects.values()} == {"neuron", "direction"}
    assert float(effects[act].errors[clean.counted].abs().max()) == 0
    assert all(float(at.completeness.abs().max()) < 1e-8 for at in effects.values())


def test_joint_effects_add_up_over_sites_and_later_sites_screen_off_earlier_ones():
    effects = run(tiny("gpt2"), sites=(MID, POST, OUT), joint=True, steps=32, rule="gauss", error="dropped")
    assert float(effects.completeness.abs().max()) < 1e-8
    assert effects.regime == "smooth path"
    assert float(effects[MID].values.abs().max()) == 0
    assert float(effects[POST].values.abs().max()) > 0
    with pytest.raises(ValueError, match="changed together"):
        _ = effects[POST].completeness


def test_the_passes_are_those_that_theory_asks_for():
    lm, n, sites, steps = tiny("gpt2"), 2, 2, 7
    both_ends = 2 * n  # clean and corrupted
    totals = sites * n
    found = run(lm, method="attribution").passes
    assert (found.forward, found.backward) == (both_ends + totals, n)
    found = run(lm, steps=steps).passes
    assert (found.forward, found.backward) == (both_ends + totals + sites * steps * n, sites * steps * n)
    found = run(lm, steps=steps, joint=True).passes
    assert (found.forward, found.backward) == (both_ends + n + steps * n, steps * n)
    exact = run(lm, method="exact")
    # Errors change from the token on that differs: three in the first sequence, two in the second.
    changes = sum(int((at.change != 0).sum()) for at in exact.values()) + sites * (3 + 2)
    assert (exact.passes.forward, exact.passes.backward) == (both_ends + totals + changes, 0)


@every_model
def test_what_stands_before_the_changed_site_is_computed_at_the_two_ends_alone(name: str):
    lm = tiny(name)
    ran: list[Tensor] = []
    norms = (".0.ln_1", ".0.input_layernorm")
    first_norm = next(module for path, module in lm.model.named_modules() if path.endswith(norms))
    run(lm, sites=(OUT,), n=1)  # once, to see what blocks hand on
    handle = first_norm.register_forward_hook(lambda *args: ran.append(args[2]))
    try:
        for sites, again in (((OUT,), 0), ((POST,), 0), ((MID,), 1 + 3)):
            ran.clear()
            run(lm, sites=sites, steps=3, n=1, batch_size=1)
            assert len(ran) == 2 + again
    finally:
        handle.remove()


def test_batches_and_padding_do_not_matter():
    lm = tiny("gemma2")
    together = run(lm, steps=3, batch_size=32)
    for batch_size in (1, 3):
        apart = run(lm, steps=3, batch_size=batch_size)
        torch.testing.assert_close(apart[POST].latents.to_dense(), together[POST].latents.to_dense())
        torch.testing.assert_close(apart[OUT].errors, together[OUT].errors)
    clean, _ = pair(lm)
    assert bool((together[POST].errors[~clean.mask] == 0).all())


def test_the_published_formulas_are_our_left_rule():
    """Sparse feature circuits, restated: N points i / N, gradients by latents and by the error, averaged, then times
    the difference; attribution is the gradient in the clean run. We agree with them where we use their rule, and differ
    by the midpoint rule, whose error is of second order."""
    lm = tiny("gpt2")
    clean, corrupted = pair(lm)
    dictionary, metric, rows = dictionary_at(lm, POST, ReLU(40, 0.1)), difference(clean), torch.arange(2)

    def parts(tokens: Tokens) -> tuple[Tensor, Tensor]:
        x = lm.activations(tokens, [POST])[POST]
        f = dictionary.encode_dense(x.flatten(0, 1)).view(*x.shape[:2], 40)
        f = f * tokens.counted.unsqueeze(-1)
        return f, x - f @ dictionary.atoms

    with torch.no_grad():
        (f, e), (f_patch, e_patch) = parts(clean), parts(corrupted)

    def published(alphas: list[float]) -> tuple[Tensor, Tensor]:
        sums = [torch.zeros_like(f), torch.zeros_like(e)]
        for alpha in alphas:
            at = [(1 - alpha) * a + alpha * b for a, b in ((f, f_patch), (e, e_patch))]
            at = [value.detach().requires_grad_() for value in at]
            spliced = lm.logits(clean, edits={POST: lambda x, at=at: at[0] @ dictionary.atoms + at[1]})
            for total, gradient in zip(sums, torch.autograd.grad(metric.judge(spliced, rows).sum(), at), strict=True):
                total += gradient / len(alphas)
        return sums[0] * (f_patch - f), (sums[1] * (e_patch - e)).sum(dim=-1)

    for alphas, settings in (
        ([i / 10 for i in range(10)], {"rule": "left"}),
        ([0.0], {"method": "attribution"}),
    ):
        theirs = published(alphas)
        ours = latent_effects(lm, dictionary, clean, corrupted, metric, **settings)
        real = clean.mask
        torch.testing.assert_close(ours.latents.to_dense()[real], theirs[0][real], rtol=0, atol=1e-11)
        torch.testing.assert_close(ours.errors[real], theirs[1][real], rtol=0, atol=1e-11)
    midpoint = latent_effects(lm, dictionary, clean, corrupted, metric)
    left = latent_effects(lm, dictionary, clean, corrupted, metric, rule="left")
    assert float(midpoint.completeness.abs().max()) < 0.05 * float(left.completeness.abs().max())


def test_metrics_read_the_last_real_token():
    lm = tiny("gpt2")
    tokens, _ = pair(lm)
    with torch.no_grad():
        logits = lm.logits(tokens)
    rows, answers = torch.tensor([1, 0]), torch.tensor([11, 12])
    last = torch.stack([logits[1, 3], logits[0, 4]])
    found = log_probability(tokens, answers).of(logits[rows], rows)
    torch.testing.assert_close(found, last.log_softmax(dim=1)[[0, 1], [12, 11]])


def test_bad_calls_are_refused():
    lm = tiny("gpt2")
    clean, corrupted = pair(lm)
    dictionary, metric = dictionary_at(lm, POST, TopK(40, 5)), difference(clean)
    with pytest.raises(ValueError, match=r"one number for each of 2 sequences, \[2\], got \[2, 5\]"):
        latent_effects(lm, dictionary, clean, corrupted, lambda logits, rows: logits.sum(dim=2))
    with pytest.raises(ValueError, match=r"got \[\]; sum over positions, not over sequences"):
        latent_effects(lm, dictionary, clean, corrupted, lambda logits, rows: logits.sum())
    with pytest.raises(UndefinedMetric, match="metric of sequence 1 is nan"):
        latent_effects(
            lm, dictionary, clean, corrupted, lambda logits, rows: logits[:, -1, 0] + torch.tensor([0, torch.nan])[rows]
        )
    with pytest.raises(ValueError, match="without detaching"):
        latent_effects(
            lm, dictionary, clean, corrupted, lambda logits, rows: logits[:, -1, 0].detach(), method="attribution"
        )
    with pytest.raises(ValueError, match=r"equal lengths, got \[5, 4\] and \[4\]"):
        latent_effects(lm, dictionary, clean, corrupted[1:], metric)
    with pytest.raises(ValueError, match="needs corrupted sequences"):
        latent_effects(lm, dictionary, clean, None, metric)
    with pytest.raises(ValueError, match="takes no corrupted sequences"):
        latent_effects(lm, dictionary, clean, corrupted, metric, ablation="zero")
    with pytest.raises(ValueError, match="does not know its site"):
        latent_effects(lm, TopK(40, 5).build(16), clean, corrupted, metric)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        latent_effects(lm, dictionary, clean, corrupted, metric, steps=0)
    pursuit = {POST: dictionary, OUT: Pursuit(40, 4).build(16).double()}
    with pytest.raises(ValueError, match="pursuit dictionary has no gates"):
        gates_of(nodes_of(lm, pursuit)[OUT])
    with pytest.raises(ValueError, match=r"no dictionary stands at some of \['1.mlp_out'\]; they are at"):
        latent_effects(lm, dictionary, clean, corrupted, metric, at=[OUT])
    two = run(lm, method="attribution")
    with pytest.raises(ValueError, match=r"effects at 2 sites"):
        _ = two.latents
