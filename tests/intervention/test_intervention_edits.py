"""Edits: what they do is known exactly, in a pass, behind a cache and in a gradient; wrong ones are refused."""

import pytest
import torch
from intervention_models import tied_dictionary, tiny_dictionary, tiny_model, unit
from models.tiny_models import KeepFloat64, count_hooks, texts

from sparsight.errors import DataError, ModelError
from sparsight.intervention import (
    Direction,
    Edits,
    Gate,
    ablate_direction,
    add_direction,
    clamp,
    last_tokens,
    orthogonalized,
    project,
    replace,
    swap_coordinates,
    write_sites,
)
from sparsight.intervention.latent_edits import latent_values
from sparsight.models import Site

POST = Site(0, "resid_post")
FAMILIES = ["gpt2", "gpt_neox", "llama", "phi", "opt", "gemma2", "bert"]


def test_after_ablation_nothing_is_left_along_the_direction_at_any_write():
    for name in FAMILIES:
        lm = tiny_model(name)
        tokens, r = lm.tokenize(texts(3, seed=0)), unit(16, 1)
        writes = [Site(layer, kind) for layer in range(2) for kind in ("resid_pre", "attn_out", "mlp_out")]
        assert set(writes) <= set(write_sites(lm))
        for site, x in lm.activations(tokens, write_sites(lm), edits=ablate_direction(lm, r)).items():
            assert (x[tokens.mask] @ r).abs().max() < 1e-12, (name, site)


def test_ablation_is_idempotent_and_changes_only_the_direction():
    lm, r = tiny_model("llama"), unit(16, 2)
    x = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    edit = ablate_direction(lm, 7 * r, [POST])[POST]
    once = edit(x)
    torch.testing.assert_close(edit(once), once, rtol=0, atol=1e-14)
    torch.testing.assert_close(once + (x @ r)[..., None] * r, x, rtol=0, atol=1e-14)


def test_a_subspace_is_ablated_whatever_basis_names_it():
    lm = tiny_model("llama")
    a, b = unit(16, 4), unit(16, 5)
    x = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    first = ablate_direction(lm, [a, b], [POST])[POST](x)
    second = ablate_direction(lm, torch.stack([a + 3 * b, b - a]), [POST])[POST](x)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-13)
    kept = project(lm, [a, b], [POST])[POST](x)
    torch.testing.assert_close(first + kept, x, rtol=0, atol=1e-13)
    point = unit(16, 27)
    about = project(lm, [a, b], [POST], about=point)[POST](x)
    both = ablate_direction(lm, [a, b], [POST])[POST]
    torch.testing.assert_close(both(about), both(point.expand_as(x)), rtol=0, atol=1e-13)
    torch.testing.assert_close(about - both(about), kept, rtol=0, atol=1e-13)


def test_ablation_towards_a_point_gives_its_coordinates():
    lm, r, point = tiny_model("llama"), unit(16, 7), 3 * unit(16, 8)
    x = torch.randn(1, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    edited = ablate_direction(lm, r, [POST], towards=point)[POST](x)
    torch.testing.assert_close(edited @ r, (point @ r).expand(1, 4), rtol=0, atol=1e-13)


def test_a_gate_leaves_the_tokens_it_is_shut_for_bit_for_bit():
    lm, r = tiny_model("llama"), unit(16, 10)
    x = torch.randn(2, 8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    gate = Gate(Direction(2 * r), 0.3)
    edited, added = (
        edits[POST](x) for edits in (ablate_direction(lm, r, [POST], gate=gate), add_direction(lm, r, POST, gate=gate))
    )
    open_ = x @ r > 0.3
    assert bool(open_.any())
    assert bool((~open_).any())
    assert torch.equal(edited[~open_], x[~open_])
    assert (edited[open_] @ r).abs().max() < 1e-13
    assert torch.equal(added, torch.where(open_[..., None], x + r, x))


def test_swapping_the_span_and_then_the_rest_is_replacing():
    lm, r = tiny_model("llama"), [unit(16, 12), unit(16, 13)]
    g = torch.Generator().manual_seed(14)
    x, source = torch.randn(2, 2, 3, 16, dtype=torch.float64, generator=g)
    both = swap_coordinates(lm, r, POST, source) + swap_coordinates(lm, r, POST, source, rest=True)
    torch.testing.assert_close(both[POST](x), source, rtol=0, atol=1e-13)
    assert torch.equal(replace(lm, POST, source)[POST](x), source)
    short = replace(lm, POST, source[:, :2])[POST](x)
    assert torch.equal(short, torch.cat([source[:, :2], x[:, 2:]], dim=1))
    one_each = replace(lm, POST, source[:, 0], where=[0, 2])[POST](x)
    assert torch.equal(one_each, torch.stack([source[:, 0], x[:, 1], source[:, 0]], dim=1))


def test_replacing_by_the_run_of_other_text_gives_what_that_text_gives():
    """At the last block's output everything that follows is that of the other run."""
    lm, last = tiny_model("llama"), Site(1, "resid_post")
    one, other = lm.tokenize(["w1 w2 w3"]), lm.tokenize(["w4 w5 w6"])
    x = lm.activations(other, [last])[last]
    torch.testing.assert_close(lm.logits(one, edits=replace(lm, last, x)), lm.logits(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gpt_neox_sequential", "llama", "qwen2", "gemma", "phi", "opt"])
def test_orthogonal_weights_are_the_same_as_ablation_where_nothing_follows_the_write(name):
    lm, r = tiny_model(name), unit(16, 15)
    tokens = lm.tokenize(texts(3, seed=1))
    weights = {key: value.clone() for key, value in lm.model.state_dict().items()}
    with KeepFloat64():
        ablated, clean = lm.logits(tokens, edits=ablate_direction(lm, r)), lm.logits(tokens)
        with orthogonalized(lm, r):
            edited = lm.logits(tokens)
    assert (clean - ablated)[tokens.mask].abs().max() > 1e-3
    torch.testing.assert_close(edited[tokens.mask], ablated[tokens.mask], rtol=0, atol=1e-10)
    assert all(torch.equal(value, weights[key]) for key, value in lm.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gemma2", "between each write and the stream"),
        ("gemma3_text", "between each write and the stream"),
        ("bert", "each sum passes a norm"),
        ("roberta", "each sum passes a norm"),
        ("opt_norms_behind", "each sum passes a norm"),
    ],
)
def test_orthogonal_weights_are_refused_where_a_norm_follows_the_write(name, reason):
    with (
        pytest.raises(ModelError, match=f"cannot stand for ablation: .*{reason}"),
        orthogonalized(tiny_model(name), unit(16, 16)),
    ):
        pass


def test_a_clamp_is_decoding_with_the_new_value_and_adding_the_error():
    lm, dictionary = tiny_model("llama"), tiny_dictionary()
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(17))
    rows = x.flatten(0, 1)
    code = dictionary.encode_dense(rows)
    error = rows - dictionary(rows)
    f = code[:, 3]
    assert 0 < int((f > 0).sum()) < 10
    for how, wanted in (
        ({"to": 2.5}, torch.full_like(f, 2.5)),
        ({"scale": -3}, -3 * f),
        ({"add": 0.7}, f + 0.7),
        ({"at_least": 0.2, "at_most": 0.4}, f.clamp(0.2, 0.4)),
        ({"at_least": 0.3}, f.clamp_min(0.3)),
        ({"at_most": 0.1}, f.clamp_max(0.1)),
    ):
        changed = code.clone()
        changed[:, 3] = wanted
        expected = changed @ dictionary.atoms + dictionary.b_dec + error
        edited = clamp(dictionary, 3, **how, lm=lm)[POST](x).flatten(0, 1)
        torch.testing.assert_close(edited, expected, rtol=0, atol=1e-13)
    several = code.clone()
    several[:, [3, 8]] = 2.0
    edited = clamp(dictionary, [3, 8], to=2.0)[POST](x).flatten(0, 1)
    torch.testing.assert_close(edited, several @ dictionary.atoms + dictionary.b_dec + error, rtol=0, atol=1e-13)


def test_a_latent_set_to_its_own_value_changes_no_bit_and_clamps_commute():
    dictionary = tiny_dictionary()
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(18))
    assert torch.equal(clamp(dictionary, 3, scale=1.0)[POST](x), x)
    one = x[:1, :1]
    with torch.no_grad():
        value = float(latent_values(dictionary.encode(one[0]), [3])[0, 0])
    assert torch.equal(clamp(dictionary, 3, to=value)[POST](one), one)
    one, other = clamp(dictionary, 3, add=1.0), clamp(dictionary, 8, add=2.0)
    torch.testing.assert_close((one + other)[POST](x), (other + one)[POST](x), rtol=0, atol=1e-13)


def test_a_conditional_clamp_acts_only_where_its_latent_fires():
    dictionary = tiny_dictionary()
    x = torch.randn(2, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(19))
    fires = latent_values(dictionary.encode(x.flatten(0, 1)), [8])[:, 0].view(2, 9) > 0
    assert 0 < int(fires.sum()) < 18
    edited = clamp(dictionary, 3, to=4.0, only_where=8)[POST](x)
    assert torch.equal(edited[~fires], x[~fires])
    assert not torch.equal(edited[fires], x[fires])


def test_ablating_a_latent_is_ablating_its_direction_only_where_the_encoder_reads_the_projection():
    """Orthonormal atoms that are their own encoder: `f_j = d_j^T x` where that is positive, and 0 elsewhere."""
    lm, dictionary = tiny_model("llama"), tied_dictionary()
    x = torch.randn(1, 9, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(26))
    atom = dictionary.atoms[5].detach()
    latent, direction = clamp(dictionary, 5, to=0.0)[POST](x), ablate_direction(lm, atom, [POST])[POST](x)
    positive = x @ atom > 0
    assert 0 < int(positive.sum()) < 9
    torch.testing.assert_close(latent[positive], direction[positive], rtol=0, atol=1e-13)
    assert torch.equal(latent[~positive], x[~positive])
    assert (latent - direction)[~positive].norm(dim=-1).min() > 1e-3


@pytest.mark.parametrize(
    ("where", "meant"),
    [(2, [2]), ([0, 3], [0, 3]), (slice(1, 3), [1, 2]), (slice(2, None), [2, 3]), (slice(None, 1), [0]), ("mask", [1])],
)
def test_only_the_positions_named_are_changed(where, meant):
    lm, x = tiny_model("llama"), torch.zeros(1, 4, 16, dtype=torch.float64)
    if where == "mask":
        where = torch.tensor([[False, True, False, False]])
    changed = add_direction(lm, unit(16, 28), POST, where=where)[POST](x)
    assert changed[0].any(dim=1).nonzero().flatten().tolist() == meant


def test_edits_go_one_after_the_other_in_the_order_they_are_added():
    lm, r = tiny_model("llama"), unit(16, 20)
    x = torch.randn(1, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(21))
    first = add_direction(lm, r, POST) + ablate_direction(lm, r, [POST])
    assert (first[POST](x) @ r).abs().max() < 1e-13
    then = ablate_direction(lm, r, [POST]) + add_direction(lm, r, POST, strength=2)
    torch.testing.assert_close(then[POST](x) @ r, torch.full((1, 2), 2.0, dtype=torch.float64))


def test_standing_edits_hold_inside_and_are_gone_afterwards():
    lm, r = tiny_model("llama"), unit(16, 22)
    tokens = lm.tokenize(texts(2, seed=2))
    edits, clean, hooks = add_direction(lm, 5 * r, POST), lm.logits(tokens), count_hooks(lm.model)
    with edits.on(lm):
        assert torch.equal(lm.logits(tokens), lm.logits(tokens))
        inside = lm.logits(tokens)
        # The standing edit comes first: ablating after it undoes it but for what the token had.
        undone = lm.activations(tokens, [POST], edits=ablate_direction(lm, r, [POST]))[POST]
    assert torch.equal(inside, lm.logits(tokens, edits=edits))
    assert (undone[tokens.mask] @ r).abs().max() < 1e-12
    assert torch.equal(lm.logits(tokens), clean)
    with pytest.raises(RuntimeError, match="stop"), edits.on(lm):
        raise RuntimeError("stop")
    assert torch.equal(lm.logits(tokens), clean)
    assert count_hooks(lm.model) == hooks


@pytest.mark.parametrize(
    ("name", "where"),
    [("llama", None), ("llama", slice(2, 4)), ("llama", [0, 3]), ("opt", "mask"), ("gpt2", slice(1, None))],
)
def test_generation_behind_a_cache_is_generation_without_one(name, where):
    """Rows of unequal length: the cache pads on the left, a whole pass on the right; positions must not care."""
    lm = tiny_model(name)
    tokens = lm.tokenize(["w1 w2 w3 w4 w5", "w6 w7 w8"])
    if where == "mask":
        where = last_tokens(tokens)
    edits = add_direction(lm, 30 * unit(16, 23), POST, where=where) + clamp(tiny_dictionary(), 4, to=9.0, where=where)
    cached = lm.generate(tokens, max_new_tokens=6, edits=edits)
    whole = lm.generate(tokens, max_new_tokens=6, edits={POST: lambda x: edits[POST](x)})
    if isinstance(where, torch.Tensor):  # a plain function is not told that a mask reaches no further than the prompt
        whole = _by_whole_passes(lm, tokens, edits, 6)
    assert torch.equal(cached.ids, whole.ids)
    assert not torch.equal(cached.ids, lm.generate(tokens, max_new_tokens=6).ids)
    with edits.on(lm):
        assert torch.equal(lm.generate(tokens, max_new_tokens=6).ids, cached.ids)


def _by_whole_passes(lm, tokens, edits, n):
    shy = {site: _Shy(edit) for site, edit in edits.items()}
    return lm.generate(tokens, max_new_tokens=n, edits=shy)


class _Shy:
    """An edit that asks for positions but does not say that a cache may be kept."""

    def __init__(self, edit):
        self.at = edit.at

    def __call__(self, x):
        raise AssertionError("asked without positions")


def test_gradients_through_edits_are_those_of_finite_differences():
    lm, dictionary = tiny_model("llama"), tiny_dictionary()
    tokens = lm.tokenize(texts(2, seed=4, shortest=4))
    r = unit(16, 24)

    def loss(c):
        steered = {Site(0, "mlp_out"): lambda x: x + c * r}
        edits = (
            Edits(steered) + clamp(dictionary, 3, scale=0.5) + ablate_direction(lm, unit(16, 25), [Site(1, "attn_out")])
        )
        return lm.logits(tokens, edits=edits)[tokens.mask].square().sum()

    with KeepFloat64():
        c = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(c), c)
        with torch.no_grad():
            difference = (loss(c + 1e-6) - loss(c - 1e-6)) / 2e-6
    assert gradient.abs() > 1e-3
    torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-6)


def test_wrong_directions_are_refused_with_a_remedy():
    lm = tiny_model("llama")
    with pytest.raises(ValueError, match="zero"):
        add_direction(lm, torch.zeros(16), POST)
    with pytest.raises(ValueError, match="finite"):
        ablate_direction(lm, torch.full((16,), torch.nan))
    with pytest.raises(ValueError, match=r"width 8, activations at .* have 16"):
        ablate_direction(lm, torch.ones(8))
    with pytest.raises(DataError, match="found in other"):
        add_direction(lm, Direction(torch.ones(16), POST, "other"))
    with pytest.raises(ValueError, match="where it was found"):
        add_direction(lm, torch.ones(16))
    with pytest.raises(ValueError, match="fewer dimensions"):
        ablate_direction(lm, [torch.ones(16), 2 * torch.ones(16)])
    with pytest.raises(ModelError, match="no site"):
        add_direction(lm, torch.ones(16), "7.resid_post")
    with pytest.raises(ValueError, match="at least one direction"):
        ablate_direction(lm, [])
    with pytest.raises(ValueError, match="towards must be an activation of width 16"):
        ablate_direction(lm, torch.ones(16), towards=torch.ones(8))
    with pytest.raises(ValueError, match=r"source must be \[b, t, 16\] or \[b, 16\], got \[2, 8\]"):
        replace(lm, POST, torch.ones(2, 8))
    with pytest.raises(ValueError, match="source is for 2 rows, the batch has 1"):
        lm.logits(lm.tokenize("w1"), edits=replace(lm, POST, torch.ones(2, 16)))


def test_wrong_positions_and_latents_are_refused():
    lm, dictionary = tiny_model("llama"), tiny_dictionary()
    tokens = lm.tokenize("w1 w2")
    with pytest.raises(ValueError, match="count from the first token"):
        add_direction(lm, torch.ones(16), POST, where=-1)
    with pytest.raises(ValueError, match="beyond the 3 tokens"):
        lm.logits(tokens, edits=add_direction(lm, torch.ones(16), POST, where=3))
    with pytest.raises(ValueError, match="2 rows, the batch has 1"):
        lm.logits(tokens, edits=add_direction(lm, torch.ones(16), POST, where=torch.ones(2, 3, dtype=torch.bool)))
    for wrong, said in (
        ({"latents": 40, "to": 1.0}, r"in \[0, 40\)"),
        ({"latents": [1, 1], "to": 1.0}, "different latents"),
        ({"latents": 1}, "in one way"),
        ({"latents": 1, "to": 1.0, "scale": 2.0}, "in one way"),
        ({"latents": 1, "to": float("nan")}, "finite"),
        ({"latents": 1, "at_least": 2, "at_most": 1}, "exceed"),
    ):
        with pytest.raises(ValueError, match=said):
            clamp(dictionary, **wrong)
    with pytest.raises(ValueError, match="width 16"):
        clamp(dictionary, 1, to=1.0, site=Site(0, "mlp_act"), lm=lm)
    other = tied_dictionary()
    other.model = "other"
    with pytest.raises(DataError, match="made for model other"):
        clamp(other, 1, to=1.0, lm=lm)
    with pytest.raises(ValueError, match="beyond the 3 tokens"):
        lm.generate(tokens, max_new_tokens=2, edits=clamp(dictionary, 1, to=1.0, where=[1, 5]))


def test_an_edit_that_makes_nan_is_named_with_its_site_and_its_step():
    lm = tiny_model("llama")
    tokens = lm.tokenize("w1 w2")
    with pytest.raises(ValueError, match=r"edit at 0\.resid_post made NaN"):
        lm.logits(tokens, edits={POST: lambda x: x / 0 * 0})
    late = {POST: lambda x: x if x.shape[1] < 5 else x * float("nan")}
    with pytest.raises(ValueError, match=r"0\.resid_post made NaN .*at step 2 of the generation"):
        lm.generate(tokens, max_new_tokens=6, edits=late)
