"""Edits at sites: exact, seen by what follows, differentiable, and gone afterwards."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from tiny_models import KeepFloat64, count_hooks, norms_behind, texts
from torch import Tensor

from sparsight.errors import ModelError
from sparsight.models import LanguageModel, Replacement, Site, Tokens
from sparsight.models.families import Gate, Place

Edits = dict[Site, Callable[[Tensor], Tensor]]


def _outcome(lm: LanguageModel, tokens: Tokens, edits: Edits | None = None) -> Tensor:
    """What the model makes of a batch, without padding: logits, or the last residual stream where there is no head."""
    if lm.has_causal_loss:
        return lm.logits(tokens, edits=edits)[tokens.mask]
    last = Site(lm.n_layers - 1, "resid_post")
    return lm.activations(tokens, [last], edits=edits)[last][tokens.mask]


def _noise(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x)


def test_an_identity_edit_changes_nothing_bit_for_bit(lm: LanguageModel) -> None:
    tokens = lm.tokenize(texts(3, seed=0))
    clean = _outcome(lm, tokens)
    for site in lm.sites():
        assert torch.equal(_outcome(lm, tokens, {site: torch.clone}), clean), site
    for edit in (torch.clone, lambda x: x):
        assert torch.equal(_outcome(lm, tokens, {site: edit for site in lm.sites()}), clean)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "bert"])
def test_an_identity_edit_is_exact_in_low_precision_too(tiny, name: str, dtype: str) -> None:
    lm = tiny(name, dtype)
    tokens = lm.tokenize(texts(3, seed=0))
    edits = {site: torch.clone for site in lm.sites()}
    assert torch.equal(_outcome(lm, tokens, edits), _outcome(lm, tokens))
    assert _outcome(lm, tokens).dtype == getattr(torch, dtype)


def test_zero_at_any_site_changes_what_the_model_says(family_lm: LanguageModel) -> None:
    lm = family_lm
    tokens = lm.tokenize(texts(3, seed=1))
    clean = _outcome(lm, tokens)
    for site in lm.sites():
        assert (_outcome(lm, tokens, {site: torch.zeros_like}) - clean).abs().max() > 1e-3, site


def test_what_is_read_at_an_edited_site_is_the_edit(family_lm: LanguageModel) -> None:
    lm = family_lm
    tokens = lm.tokenize(texts(3, seed=2))
    clean = lm.activations(tokens, lm.sites())
    for number, site in enumerate(lm.sites()):
        wanted = 0.5 * clean[site] + _noise(clean[site], number)
        read = lm.activations(tokens, [site], edits={site: lambda x, w=wanted: w})
        torch.testing.assert_close(read[site], wanted, rtol=0, atol=1e-12)


def test_an_edited_stream_goes_on_as_edited(family_lm: LanguageModel) -> None:
    """After an edit the model's own sums hold with the edited value in them: no copy of the old stream is left."""
    lm = family_lm
    tokens = lm.tokenize(texts(3, seed=3))
    for kind in ("resid_pre", "attn_out", "resid_mid", "mlp_out"):
        site = Site(1, kind)
        if site not in lm.sites():
            continue
        edits = {site: lambda x: x.flip(-1) + 1}
        x = {s.kind: v for s, v in lm.activations(tokens, lm.sites(), edits=edits).items() if s.layer == 1}
        blocks = next(module for module in lm.model.modules() if isinstance(module, torch.nn.ModuleList))
        norms = norms_behind(lm, blocks[1])
        if norms is not None:
            mid = norms[0](x["resid_pre"] + x["attn_out"])
            post = norms[1](x["resid_mid"] + x["mlp_out"])
        else:
            mid = x["resid_pre"] + x["attn_out"]
            post = x.get("resid_mid", mid) + x["mlp_out"]
        if "resid_mid" in x and kind != "resid_mid":
            torch.testing.assert_close(x["resid_mid"], mid, rtol=0, atol=1e-12)
        torch.testing.assert_close(x["resid_post"], post, rtol=0, atol=1e-12)


def test_an_edit_of_what_the_mlp_reads_leaves_the_stream_alone(family_lm: LanguageModel) -> None:
    lm = family_lm
    tokens = lm.tokenize(texts(3, seed=4))
    sites = [site for site in lm.sites() if site.layer == 1 and site.kind in ("resid_pre", "resid_mid", "attn_out")]
    clean = lm.activations(tokens, [*sites, Site(1, "mlp_out")])
    edited = lm.activations(tokens, [*sites, Site(1, "mlp_out")], edits={Site(1, "mlp_in"): torch.zeros_like})
    for site in sites:
        assert torch.equal(clean[site], edited[site])
    assert not torch.equal(clean[Site(1, "mlp_out")], edited[Site(1, "mlp_out")])


def test_edits_at_all_sites_act_in_the_order_of_the_pass(family_lm: LanguageModel) -> None:
    """Each edit must see what the edits before it made: constants written at every site are all read back."""
    lm = family_lm
    tokens = lm.tokenize(texts(2, seed=5))
    # A Sum writes into its branch, so attn_out is read before resid_mid is written: both come back as edited.
    edits = {site: lambda x, n=number: torch.full_like(x, n) for number, site in enumerate(lm.sites())}
    read = lm.activations(tokens, lm.sites(), edits=edits)
    shared = {Site(None, "embed"): Site(0, "resid_pre")} if lm.family in ("llama", "gemma2", "gpt_neox", "phi") else {}
    for number, site in enumerate(lm.sites()):
        assert site not in shared or torch.equal(read[site], torch.zeros_like(read[site]))
        torch.testing.assert_close(read[site], torch.full_like(read[site], number), rtol=0, atol=1e-12)


def test_the_gradient_of_edits_is_that_of_finite_differences(family_lm: LanguageModel) -> None:
    """One number per site, all sites edited at once: gradients pass through every edit and through what it is given."""
    lm = family_lm
    tokens = lm.tokenize(texts(1, seed=6, shortest=5))
    sites = lm.sites()
    noise = {site: _noise(value, 0) for site, value in lm.activations(tokens, sites).items()}

    def edit(site: Site, a: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: x + 0.3 * torch.sin(x) + a * noise[site]

    def outcome(a: Tensor) -> Tensor:
        said = _outcome(lm, tokens, {site: edit(site, a[i]) for i, site in enumerate(sites)})
        return (said * _noise(said, 1)).sum()

    with KeepFloat64():
        a = torch.full((len(sites),), 0.3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(outcome(a), a)
        with torch.no_grad():
            steps = 1e-6 * torch.eye(len(sites), dtype=torch.float64)
            differences = torch.stack([(outcome(a + step) - outcome(a - step)) / 2e-6 for step in steps])
    assert gradient.abs().min() > 1e-3  # no site is cut off
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-6)


def test_activations_are_differentiable_and_detached_under_no_grad(tiny) -> None:
    lm = tiny("llama")
    tokens = lm.tokenize("w1 w2 w3")
    shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    site, after = Site(0, "resid_post"), Site(1, "resid_post")
    assert lm.activations(tokens, [after], edits={site: lambda x: x + shift})[after].requires_grad
    with torch.no_grad():
        assert not lm.activations(tokens, [after], edits={site: lambda x: x + shift})[after].requires_grad


def test_weights_are_frozen_so_that_a_clean_pass_keeps_no_graph(tiny) -> None:
    assert not tiny("llama").logits(tiny("llama").tokenize("w1 w2")).requires_grad


class _Fault(Exception):
    pass


def _raise(x: Tensor) -> Tensor:
    raise _Fault


def test_no_hook_is_left_after_success_nor_after_an_exception_in_an_edit(family_lm: LanguageModel) -> None:
    lm = family_lm
    tokens = lm.tokenize(texts(2, seed=7))
    before, clean = count_hooks(lm.model), _outcome(lm, tokens)
    _outcome(lm, tokens, {site: torch.zeros_like for site in lm.sites()})
    assert count_hooks(lm.model) == before
    for site in lm.sites():
        with pytest.raises(_Fault):
            lm.activations(tokens, [lm.sites()[-1]], edits={lm.sites()[0]: torch.clone, site: _raise})
        assert count_hooks(lm.model) == before
    assert torch.equal(_outcome(lm, tokens), clean)


def test_edits_never_write_in_place(family_lm: LanguageModel) -> None:
    """A tensor read from a clean pass keeps its values when a later pass is edited, and so do the weights."""
    lm = family_lm
    tokens = lm.tokenize(texts(2, seed=8))
    weights = {name: p.clone() for name, p in lm.model.named_parameters()}
    given: dict[Site, tuple[Tensor, Tensor]] = {}

    def keep(site: Site) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            given[site] = (x, x.clone())
            return x + 1

        return edit

    lm.activations(tokens, lm.sites(), edits={site: keep(site) for site in lm.sites()})
    assert len(given) == len(lm.sites())
    assert all(torch.equal(x, copy) for x, copy in given.values())
    assert all(torch.equal(p, weights[name]) for name, p in lm.model.named_parameters())


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("kind", ["resid_mid", "mlp_act", "resid_post"])
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda x: x[:, :1], "must return"),
        (lambda x: x.float(), "torch.float32"),
        (lambda x: x.sum(-1), "must return"),
        (lambda x: None, "NoneType"),
    ],
)
def test_an_edit_of_the_wrong_shape_or_dtype_is_refused_by_name(tiny, name, kind, edit, said) -> None:
    lm = tiny(name)
    with pytest.raises(ValueError, match=said) as refusal:
        lm.activations(lm.tokenize("w1 w2 w3"), [Site(1, "resid_post")], edits={Site(0, kind): edit})
    assert f"0.{kind}" in str(refusal.value)


def test_a_site_that_was_not_computed_is_an_error(tiny, monkeypatch) -> None:
    lm = tiny("llama")
    tokens = lm.tokenize("w1 w2 w3")
    elsewhere = Gate(torch.nn.Linear(16, 16), "output")  # a module that the model never calls
    monkeypatch.setitem(lm._places, Site(1, "mlp_out"), Place(elsewhere, elsewhere))
    before = count_hooks(lm.model)
    with pytest.raises(ModelError, match=r"without computing layer 1 × mlp_out"):
        lm.activations(tokens, [Site(0, "mlp_out"), Site(1, "mlp_out")])
    with pytest.raises(ModelError, match=r"without computing layer 1 × mlp_out"):
        lm.logits(tokens, edits={Site(1, "mlp_out"): torch.clone})
    assert count_hooks(lm.model) == before


def test_a_site_that_is_computed_in_pieces_is_an_error(tiny) -> None:
    """A chunked feed-forward runs the MLP several times on parts of the sequence: no single activation to edit."""
    lm = tiny("bert")
    block = lm.model.encoder.layer[0]
    block.chunk_size_feed_forward = 1
    try:
        with pytest.raises(ModelError, match=r"0\.mlp_act was computed twice"):
            lm.activations(lm.tokenize("w1 w2 w3"), [Site(0, "mlp_act"), Site(1, "resid_post")])
    finally:
        block.chunk_size_feed_forward = 0


def test_an_unknown_site_is_refused_and_the_known_ones_listed(tiny) -> None:
    lm = tiny("gpt_neox")
    tokens = lm.tokenize("w1 w2")
    kinds = "resid_pre, attn_z, attn_out, mlp_in, mlp_act, mlp_out, resid_post"
    for call in (
        lambda site: lm.activations(tokens, [site]),
        lambda site: lm.logits(tokens, edits={site: torch.clone}),
        lm.width,
    ):
        for site in (Site(2, "resid_post"), Site(0, "resid_mid")):
            with pytest.raises(ModelError) as refusal:
                call(site)
            assert str(refusal.value).endswith(f"has no site {site}; it has embed; layers 0-1 × {kinds}")


def test_blocks_before_a_replaced_stream_do_not_run_and_nothing_else_changes(family_lm: LanguageModel) -> None:
    """Values and gradients to the last bit; whatever is read or edited further up is computed as ever."""
    lm = family_lm
    tokens = lm.tokenize(texts(3, seed=9))
    first, between, into, out = map(Site.parse, ("0.mlp_out", "0.resid_post", "1.resid_pre", "1.resid_post"))
    ran: list[int] = []
    blocks = [lm._places[Site(i, "resid_pre")].write.module for i in range(lm.n_layers)]
    handles = [
        next(block.children()).register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)
    ]
    with torch.no_grad():
        value = lm.activations(tokens, [out])[out]
        _outcome(lm, tokens, {out: Replacement(value)})  # once to see what its blocks hand on
    try:
        for site, n_run in ((between, 1), (into, 1), (out, 0), (first, 2)):
            results = []
            for edit in (Replacement, lambda leaf: lambda x: leaf.to(x.dtype)):
                ran.clear()
                leaf = value.clone().requires_grad_()
                made = _outcome(lm, tokens, {site: edit(leaf)})
                results.append((made, torch.autograd.grad(made.sin().sum(), leaf)[0], len(set(ran))))
            assert torch.equal(results[0][0], results[1][0]), site
            assert torch.equal(results[0][1], results[1][1]), site
            assert [n for _, _, n in results] == [n_run, 2], site
        ran.clear()
        assert torch.equal(lm.activations(tokens, [first], edits={out: Replacement(value)})[first],
                           lm.activations(tokens, [first])[first])  # fmt: skip
        with pytest.raises(ValueError, match="keep the shape"):
            _outcome(lm, tokens, {out: Replacement(value[:1])})
    finally:
        for handle in handles:
            handle.remove()
    assert all("forward" not in block.__dict__ for block in blocks)


def test_what_an_edit_holds_is_free_as_soon_as_the_pass_is_over(family_lm: LanguageModel) -> None:
    """Without a run of the garbage collector: passes are many, and what they hold is large."""
    lm = family_lm
    tokens = lm.tokenize(texts(2, seed=11))
    site = Site(1, "resid_pre")
    with torch.no_grad():
        value = lm.activations(tokens, [site])[site].clone()
    gc.disable()
    try:
        edit = Replacement(value)
        held = weakref.ref(edit)
        _outcome(lm, tokens, {site: edit})
        del edit
        assert held() is None
    finally:
        gc.enable()
