"""Splices: what they write, and how gradients pass through them."""

from collections.abc import Iterator

import pytest
import torch
from circuit_models import KeepFloat64, dictionary_at, tiny
from torch import Tensor

from sparsight.circuits import DictionaryNodes, DirectionNodes, NeuronNodes, NodeValues, Splice, nodes_of
from sparsight.dictionaries import Crosscoder, DictionaryConfig, Gated, JumpReLU, ReLU, TopK, Transcoder
from sparsight.errors import ModelError
from sparsight.models import LanguageModel, Site, Tokens

CONFIGS = [
    ReLU(40, 0.1),
    Gated(40, 0.1),
    JumpReLU(40, target_l0=5),
    TopK(40, 5),
    Transcoder(40, 5, skip=True),
]
CASES = [("gpt2", config) for config in CONFIGS] + [("gemma2", config) for config in CONFIGS[-3:]]
every_case = pytest.mark.parametrize(("name", "config"), CASES, ids=lambda c: getattr(c, "run_name", c))
every_model = pytest.mark.parametrize("name", ["gpt2", "gemma2"])


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    with KeepFloat64():
        yield


def batch(lm: LanguageModel) -> Tokens:
    return lm.tokenize(["w1 w2 w3 w4", "w5 w6"])


def placed(lm: LanguageModel, config: DictionaryConfig) -> dict[Site, DictionaryNodes]:
    sites = ["0.mlp_out", "1.mlp_out"] if isinstance(config, Transcoder) else ["0.resid_mid", "1.mlp_out"]
    return nodes_of(lm, {Site.parse(s): dictionary_at(lm, s, config, seed=i) for i, s in enumerate(sites)})


@every_case
@pytest.mark.parametrize("gradient", ["encoded", "leaves", "passed"])
def test_a_splice_that_changes_nothing_changes_no_bit(name: str, config: DictionaryConfig, gradient: str):
    lm = tiny(name)
    splice = Splice(placed(lm, config), where=batch(lm).counted, gradient=gradient)
    with torch.no_grad():
        assert torch.equal(lm.logits(batch(lm), edits=splice.edits()), lm.logits(batch(lm)))


@every_case
@pytest.mark.parametrize("gradient", ["encoded", "passed"])
def test_upstream_sees_the_gradient_of_the_model_itself(name: str, config: DictionaryConfig, gradient: str):
    lm = tiny(name)
    tokens = batch(lm)
    leaves: list[Tensor] = []

    def watch(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    upstream = {Site(0, "resid_pre"): watch}
    splice = Splice(placed(lm, config), where=tokens.counted, gradient=gradient)
    found = []
    for edits in (splice.edits(upstream), upstream):
        metric = lm.logits(tokens, edits=edits)[:, -1].sin().sum()
        found.append(torch.autograd.grad(metric, leaves[-1])[0])
    torch.testing.assert_close(found[0], found[1])


@every_model
def test_leaves_cut_the_way_upstream(name: str):
    lm = tiny(name)
    leaf = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    splice = Splice(
        nodes_of(lm, {Site(0, "resid_post"): dictionary_at(lm, "0.resid_post", TopK(40, 5))}), gradient="leaves"
    )
    metric = lm.logits(batch(lm), edits=splice.edits({Site(0, "resid_pre"): lambda x: x + leaf})).sum()
    assert torch.autograd.grad(metric, leaf, allow_unused=True)[0] is None


@every_case
def test_gradients_by_values_and_errors_are_finite_differences(name: str, config: DictionaryConfig):
    """Both sites at once: the first site's nodes act through the second one's encoder, with the error dropped there."""
    lm = tiny(name)
    tokens = batch(lm)
    nodes = placed(lm, config)
    first, second = nodes
    error = {first: "kept", second: "dropped"}

    def metric(shift: Tensor, error_shift: Tensor) -> tuple[Tensor, Splice]:
        def change(v: NodeValues) -> NodeValues:
            return NodeValues(v.indices, v.values + shift, v.error + error_shift)

        splice = Splice(nodes, where=tokens.counted, error=error, change={first: change})
        return lm.logits(tokens, edits=splice.edits())[:, -1].sin().sum(), splice

    _, probe = metric(torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    values, left = probe.placed[first].values, probe.placed[first].error
    zeros = [torch.zeros_like(values.detach()), torch.zeros_like(left.detach())]
    m, splice = metric(*[z.requires_grad_() for z in zeros])
    by_values, by_error = torch.autograd.grad(m, [splice.placed[first].values, splice.placed[first].error])
    g = torch.Generator().manual_seed(1)
    for index, gradient in ((0, by_values), (1, by_error)):
        step = [torch.zeros_like(z) for z in zeros]
        step[index] = torch.randn(zeros[index].shape, generator=g, dtype=torch.float64) * 1e-6
        with torch.no_grad():
            difference = (metric(*step)[0] - metric(*[-s for s in step])[0]) / 2
        torch.testing.assert_close((gradient * step[index]).sum(), difference, rtol=1e-5, atol=1e-12)


@every_case
def test_gradients_through_the_encoder_are_finite_differences(name: str, config: DictionaryConfig):
    """Errors detached: what comes in from upstream acts through latents alone, as if errors were held."""
    lm = tiny(name)
    tokens = batch(lm)
    nodes = placed(lm, config)
    first = next(iter(nodes))
    # An MLP's output is not read by a transcoder: what is read is moved.
    reads = nodes[first].reads
    g = torch.Generator().manual_seed(2)
    way = torch.randn(16, generator=g, dtype=torch.float64)
    with torch.no_grad():
        clean = Splice({first: nodes[first]}, where=tokens.counted)
        lm.logits(tokens, edits=clean.edits())

    def metric(amount: Tensor, hold: bool) -> Tensor:
        def held(v: NodeValues) -> NodeValues:
            return NodeValues(v.indices, v.values, clean.found[first].error)

        splice = Splice(
            {first: nodes[first]},
            where=tokens.counted,
            error="detached",
            change={first: held} if hold else {},
        )
        return lm.logits(tokens, edits=splice.edits({reads: lambda x: x + amount * way}))[:, -1].sin().sum()

    leaf = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(metric(leaf, hold=False), leaf)
    with torch.no_grad():
        h = torch.tensor(1e-6, dtype=torch.float64)
        difference = (metric(h, hold=True) - metric(-h, hold=True)) / (2 * h)
    # BOS is not coded: its error is the whole activation, and held as well.
    torch.testing.assert_close(gradient, difference, rtol=1e-5, atol=1e-9)


def test_a_dropped_error_leaves_the_reconstruction_and_spares_tokens_that_are_not_coded():
    lm = tiny("gpt2")
    tokens, site = batch(lm), Site(1, "resid_post")
    dictionary = dictionary_at(lm, site, TopK(40, 5))
    with torch.no_grad():
        x = lm.activations(tokens, [site])[site]
        splice = Splice(nodes_of(lm, {site: dictionary}), where=tokens.counted, error="dropped")
        y = lm.activations(tokens, [site], edits=splice.edits())[site]
        torch.testing.assert_close(y[tokens.counted], dictionary(x[tokens.counted]))
        assert torch.equal(y[~tokens.counted], x[~tokens.counted])


def test_a_transcoder_stands_in_for_the_module():
    lm = tiny("gpt2")
    tokens, reads, writes = batch(lm), Site(0, "mlp_in"), Site(0, "mlp_out")
    transcoder = dictionary_at(lm, writes, Transcoder(40, 5, skip=True))
    with torch.no_grad():
        clean = lm.activations(tokens, [reads, writes])
        splice = Splice(nodes_of(lm, transcoder), where=tokens.counted, error="dropped")
        written = lm.activations(tokens, [writes], edits=splice.edits())[writes]
        torch.testing.assert_close(written[tokens.counted], transcoder(clean[reads][tokens.counted]))
        error = clean[writes] - transcoder(clean[reads].flatten(0, 1)).view_as(clean[writes])
        torch.testing.assert_close(splice.found[writes].error[tokens.counted], error[tokens.counted])


def test_overrides_hold_at_single_positions():
    """Setting one latent at one token moves the activation by the change times the atom, there and nowhere else."""
    lm = tiny("gemma2")
    tokens, site = batch(lm), Site(0, "resid_post")
    dictionary = dictionary_at(lm, site, TopK(40, 5))

    def change(v: NodeValues) -> NodeValues:
        values = v.values.clone()
        values[1, 2, 0] += 3.0
        return NodeValues(v.indices, values, v.error)

    splice = Splice(nodes_of(lm, {site: dictionary}), where=tokens.counted, change={site: change})
    with torch.no_grad():
        lm.logits(tokens, edits=splice.edits())
        moved = splice.written[site] - lm.activations(tokens, [site])[site]
    latent = splice.found[site].indices[1, 2, 0]
    torch.testing.assert_close(moved[1, 2], 3 * dictionary.atoms[latent])
    moved[1, 2] = 0
    assert bool((moved == 0).all())


def test_generation_is_spliced_at_every_new_token():
    """Dropping the error by a splice and by hand writes the same continuation."""
    lm = tiny("gpt2")
    tokens, site = lm.tokenize(["w1 w2 w3"]), Site(0, "mlp_out")
    dictionary = dictionary_at(lm, site, TopK(40, 3))

    def by_hand(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], dictionary(x[:, 1:].flatten(0, 1)).view_as(x[:, 1:])], dim=1)

    splice = Splice(nodes_of(lm, {site: dictionary}), where=~tokens.special, error="dropped")
    spliced = lm.generate(tokens, max_new_tokens=6, edits=splice.edits())
    assert torch.equal(spliced.ids, lm.generate(tokens, max_new_tokens=6, edits={site: by_hand}).ids)
    assert not torch.equal(spliced.ids, lm.generate(tokens, max_new_tokens=6).ids)


def test_neurons_leave_no_error_and_directions_an_orthogonal_one():
    lm = tiny("gpt2")
    tokens, act, stream = batch(lm), Site(0, "mlp_act"), Site(0, "resid_post")
    g = torch.Generator().manual_seed(3)
    directions = torch.randn(5, 16, generator=g, dtype=torch.float64)
    nodes = {act: NeuronNodes(act, 24, directions), stream: DirectionNodes(stream, directions)}
    splice = Splice(nodes_of(lm, nodes))
    with torch.no_grad():
        lm.logits(tokens, edits=splice.edits())
        x = lm.activations(tokens, [act])[act]
    assert bool((splice.found[act].error == 0).all())
    assert torch.equal(splice.found[act].to_dense(24), x)
    assert float((splice.found[stream].error @ directions.T).abs().max()) < 1e-12


def test_bad_splices_are_refused():
    lm = tiny("gpt2")
    site = Site(0, "resid_post")
    good = dictionary_at(lm, site, TopK(40, 5))
    nodes = nodes_of(lm, good)
    with pytest.raises(ValueError, match="does not know its site"):
        nodes_of(lm, TopK(40, 5).build(16))
    with pytest.raises(ValueError, match=r"was trained at 0.resid_post and cannot stand at 1.mlp_out"):
        nodes_of(lm, {Site(1, "mlp_out"): good})
    with pytest.raises(ValueError, match=r"width 24 at 0.mlp_act, got latents of width 16"):
        nodes_of(lm, {Site(0, "mlp_act"): TopK(40, 5).build(16)})
    with pytest.raises(ModelError, match=r"no site 7.mlp_out"):
        nodes_of(lm, {Site(7, "mlp_out"): TopK(40, 5).build(16)})
    with pytest.raises(ValueError, match="crosscoder"):
        nodes_of(lm, {site: Crosscoder(40, 5).build((16, 16))})
    with pytest.raises(ValueError, match="at one site at least"):
        nodes_of(lm, {})
    with pytest.raises(ValueError, match=r"error must name the sites that have nodes, \['0.resid_post'\]"):
        Splice(nodes, error={Site(1, "mlp_out"): "kept"})
    with pytest.raises(ValueError, match=r"nothing stands at 1.mlp_out"):
        Splice(nodes, change={Site(1, "mlp_out"): lambda v: v})
    with pytest.raises(ValueError, match="linearly independent"):
        DirectionNodes(site, torch.ones(2, 16))
    bad = Splice(nodes, change={site: lambda v: v[:1]})
    with pytest.raises(ValueError, match="must keep the batch"):
        lm.logits(batch(lm), edits=bad.edits())
