"""Generation is the full forward pass, asked again after every token."""

import pytest
import torch
from tiny_models import EOS, PAD, texts
from torch import Tensor

from sparsight.models import LanguageModel, Site, Tokens, generation

EDITS = {
    Site(0, "resid_mid"): lambda x: 0.7 * x + 0.5 * torch.sin(x),
    Site(1, "mlp_out"): lambda x: x.flip(-1),
}


def _known(lm: LanguageModel) -> dict[Site, object]:
    return {site: edit for site, edit in EDITS.items() if site in lm.sites()}


@pytest.fixture
def endless(monkeypatch):
    """No token ends a row, so that random models go on."""
    monkeypatch.setattr(LanguageModel, "_end_ids", lambda self: [])


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("edited", [False, True])
def test_greedy_generation_is_the_argmax_of_the_full_pass_at_every_step(causal_lm, edited: bool) -> None:
    lm = causal_lm
    edits = _known(lm) if edited else None
    for prompt in texts(2, seed=0):
        tokens = lm.tokenize(prompt)
        expected = tokens.ids
        for _ in range(6):
            so_far = Tokens(expected, torch.ones_like(expected, dtype=torch.bool), torch.zeros_like(expected) > 0)
            expected = torch.cat([expected, lm.logits(so_far, edits=edits)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(lm.generate(tokens, max_new_tokens=6, edits=edits).ids, expected)
        if edited:
            cached = lm.generate(tokens, max_new_tokens=6, edits=edits, edits_per_token=True)
            assert torch.equal(cached.ids, expected)


@pytest.mark.usefixtures("endless", "exact")
@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("how", ["clean", "edited", "per_token"])
def test_a_row_is_the_same_alone_and_among_others(causal_lm, temperature: float, how: str) -> None:
    lm = causal_lm
    edits = None if how == "clean" else _known(lm)
    settings = {"max_new_tokens": 5, "edits": edits, "temperature": temperature, "edits_per_token": how == "per_token"}
    prompts = texts(3, seed=1)
    tokens = lm.tokenize(prompts)
    together = lm.generate(tokens, **settings, seed=3)
    assert together.mask.sum(1).tolist() == (tokens.mask.sum(1) + 5).tolist()
    first = lm.generate(lm.tokenize(prompts[0]), **settings, seed=3)
    assert torch.equal(together.ids[0][together.mask[0]], first.ids[0])
    if temperature == 0:  # a later row draws other numbers when it is the first
        for row, prompt in enumerate(prompts):
            alone = lm.generate(lm.tokenize(prompt), **settings)
            assert torch.equal(together.ids[row][together.mask[row]], alone.ids[0])


@pytest.mark.usefixtures("endless")
def test_an_edit_that_looks_at_other_tokens_sees_whole_sequences(tiny) -> None:
    lm, lengths = tiny("llama"), []

    def subtract_mean(x: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return x - x.mean(dim=1, keepdim=True)

    tokens = lm.tokenize("w1 w2 w3")
    lm.generate(tokens, max_new_tokens=3, edits={Site(0, "resid_post"): subtract_mean})
    assert lengths == [4, 5, 6]


def test_a_row_ends_at_the_end_of_sequence_and_the_others_go_on() -> None:
    """A next-token rule with a known answer: each row counts down from its last token to EOS."""

    def count_down(tokens: Tokens) -> Tensor:
        last = tokens.ids.gather(1, tokens.mask.sum(1, keepdim=True) - 1)[:, 0]
        return torch.nn.functional.one_hot(last - 1, 10).float()

    prompts = Tokens.pad([[9, 4], [7]], [[False, False], [False]], PAD)
    out = generation.generate(prompts, count_down, max_new_tokens=8, temperature=0.0, seed=0, end_ids=[EOS], pad_id=PAD)
    assert out.ids.tolist() == [[9, 4, 3, 2, PAD, PAD], [7, 6, 5, 4, 3, 2]]
    assert out.mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert out.special.nonzero().tolist() == [[0, 3], [1, 5]]


def test_the_models_own_end_of_sequence_is_used(tiny) -> None:
    lm = tiny("gpt2")
    assert lm._end_ids() == [EOS]


def test_prompts_padded_on_the_left_give_the_same(tiny) -> None:
    lm = tiny("qwen3")
    right = lm.tokenize(texts(3, seed=2))
    order = right.mask.to(torch.int8).argsort(dim=1, stable=True)
    left = Tokens(*(part.gather(1, order) for part in (right.ids, right.mask, right.special)))
    ours, theirs = lm.generate(right, max_new_tokens=4), lm.generate(left, max_new_tokens=4)
    assert torch.equal(ours.ids, theirs.ids)
    assert torch.equal(ours.mask, theirs.mask)


def test_sampling_follows_the_probabilities() -> None:
    """Tokens fall where the cumulative probability passes an even grid of draws: exact shares."""
    p = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen = generation.choose((2 * p.log()).expand(1000, 4), 2.0, draws)
    assert chosen.bincount(minlength=4).tolist() == [100, 0, 600, 300]


def test_a_draw_at_the_very_end_still_falls_on_a_token() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]])
    assert generation.choose(logits, 1.0, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [1]


def test_a_seed_repeats_a_sample_and_another_seed_does_not(tiny) -> None:
    lm = tiny("gpt_neox")
    tokens = lm.tokenize(texts(2, seed=4))
    first, again, other = (
        lm.generate(tokens, max_new_tokens=8, temperature=1.0, seed=seed).ids.tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 30}, "exceed the context of 32"),
    ],
)
def test_wrong_settings_are_refused(tiny, settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tiny("gpt2").generate(tiny("gpt2").tokenize("w1 w2"), **settings)


def test_an_empty_prompt_is_refused(tiny) -> None:
    tokens = tiny("gpt2").tokenize(["w1 w2"])
    nothing = Tokens(tokens.ids, torch.zeros_like(tokens.mask), tokens.special)
    with pytest.raises(ValueError, match="at least one token"):
        tiny("gpt2").generate(nothing, max_new_tokens=1)
