"""The proofs of every family again in the dtypes that users load, with padding on both sides."""

from pathlib import Path

import pytest
import torch
from tiny_models import CAUSAL, ENCODERS, N_VOCABULARY, TINY, build_tokenizer, count_hooks, texts

from sparsight.models import LanguageModel, Site, Tokens, load_model

# Relative to the largest value at a site: a rounding is 2^-24 of it in float32, 2^-9 in bfloat16, and sums hold a few.
ROUNDING = {"float32": 2e-6, "bfloat16": 2e-2}


@pytest.fixture(params=[(name, dtype) for name in TINY for dtype in ROUNDING], ids=lambda p: "-".join(p))
def model(request: pytest.FixtureRequest, tiny) -> tuple[LanguageModel, float]:
    name, dtype = request.param
    return tiny(name, dtype), ROUNDING[dtype]


def _batch(lm: LanguageModel, side: str) -> Tokens:
    right = lm.tokenize(texts(4, seed=2, shortest=3))
    if side == "right":
        return right
    order = right.mask.to(torch.int8).argsort(dim=1, stable=True)
    return Tokens(*(part.gather(1, order) for part in (right.ids, right.mask, right.special)))


def _assert_near(got: torch.Tensor, wanted: torch.Tensor, relative: float) -> None:
    got, wanted = got.double(), wanted.double()
    torch.testing.assert_close(got, wanted, rtol=0, atol=relative * float(wanted.abs().max().clamp_min(1)))


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_is_written_to_the_stream_adds_up(model, side: str) -> None:
    lm, rounding = model
    tokens = _batch(lm, side)
    x = {s: v[tokens.mask] for s, v in lm.activations(tokens, lm.sites()).items()}
    for layer in range(lm.n_layers):
        at = {site.kind: value for site, value in x.items() if site.layer == layer}
        assert all(value.dtype == lm.dtype for value in at.values())
        if lm.family in ENCODERS or (lm.family == "opt" and not lm.model.config.do_layer_norm_before):
            continue  # norms stand behind the sums there; tests/models/test_sites_add_up.py has them in float64
        whole = at["resid_pre"].double() + at["attn_out"].double() + at["mlp_out"].double()
        _assert_near(at["resid_post"], whole, rounding)


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_edit_that_changes_nothing_changes_no_bit_and_leaves_no_hook(model, side: str) -> None:
    lm, _ = model
    tokens = _batch(lm, side)
    last = Site(lm.n_layers - 1, "resid_post")
    clean = lm.activations(tokens, [last])[last]
    edited = lm.activations(tokens, [last], edits={site: torch.clone for site in lm.sites()})[last]
    assert torch.equal(edited[tokens.mask], clean[tokens.mask])
    assert count_hooks(lm.model) == 0


def test_gradients_reach_every_site(model) -> None:
    """The derivative along a direction is the difference that a step along it makes (float32), and is finite."""
    lm, rounding = model
    tokens = _batch(lm, "right")
    last = Site(lm.n_layers - 1, "resid_post")
    for site in [site for site in lm.sites() if site.layer != 0]:
        shift = torch.zeros((), dtype=lm.dtype, requires_grad=True)
        out = lm.activations(tokens, [last], edits={site: lambda x, s=shift: x + s})[last]
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        objective = (out * weights)[tokens.mask].double().sum()
        objective.backward()
        assert shift.grad is not None
        assert torch.isfinite(shift.grad)
        # OPT hands its blocks' streams on after a norm, where a common shift of all dimensions is taken out again.
        if rounding < 1e-3 and site == last:
            assert float(shift.grad) == pytest.approx(float(weights[tokens.mask].sum()), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("side", ["right", "left"])
def test_generation_with_edits_follows_the_full_pass_in_bfloat16(tiny, name: str, side: str) -> None:
    """Each token is likeliest under the full pass on what came before it, to the rounding of logits that tie."""
    lm = tiny(name, "bfloat16")
    edits = {Site(0, "attn_out"): lambda x: 0.5 * x, Site(1, "mlp_out"): lambda x: -x}
    for per_token in (False, True):
        written = lm.generate(_batch(lm, side), max_new_tokens=4, edits=edits, edits_per_token=per_token)
        logits = lm.logits(written, edits=edits).float()
        prompts = _batch(lm, side).mask.sum(dim=1)
        for row in range(len(written)):
            for place in range(int(prompts[row]), int(written.mask[row].sum())):
                before = logits[row, place - 1]
                chosen = before[written.ids[row, place]]
                assert chosen >= before.max() - 0.02 * before.abs().max(), (name, side, per_token, row, place)


def test_a_gemma_3_that_sees_pictures_is_the_language_model_inside_it(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = TINY["gemma3_text"][2]
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=text,
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        image_token_index=N_VOCABULARY - 1,
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    build_tokenizer(ends=False).save_pretrained(tmp_path)
    lm = load_model(tmp_path)
    tokens = lm.tokenize("w1 w2 w3 w4")
    assert (lm.family, lm.n_layers) == ("gemma2", 2)
    with torch.no_grad():
        expected = whole(tokens.ids).logits
    torch.testing.assert_close(lm.logits(tokens), expected, rtol=0, atol=1e-6)
    assert not any("vision" in name for name, _ in lm.model.named_modules())
