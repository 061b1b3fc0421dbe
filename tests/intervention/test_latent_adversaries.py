"""Adversaries in latent space: one step on a linear head is a closed form, balls hold, radius 0 is the model itself."""

import pytest
import torch
from intervention_models import tiny_dictionary, tiny_model

from sparsight.errors import DataError
from sparsight.intervention.adversarial import (
    AdversarialTraining,
    Answers,
    Attack,
    Ball,
    attack,
    latent_adversarial_training,
    span_of_latents,
    success,
    whitening,
)
from sparsight.intervention.adversarial.examples import perturb, perturbed
from sparsight.models import Site

POST = Site(0, "resid_post")


def _noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _linear():
    x, w = _noise(3, 4, 5), _noise(3, 4, 5, seed=1)
    return x, w, lambda delta: ((x + delta) * w).sum(dim=(1, 2)), torch.ones(3, 4, dtype=torch.bool)


def test_on_a_linear_loss_one_step_is_the_closed_form():
    """delta = e g / |g|, and the loss rises by e |g| exactly; for linf, by e |g|_1."""
    x, w, loss, allowed = _linear()
    one = Attack(steps=1)
    found = attack(loss, x, allowed, Ball(0.7, per="example"), one)
    norms = w.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.delta, 0.7 * w / norms[:, None, None], rtol=0, atol=1e-14)
    torch.testing.assert_close(found.loss - found.clean, 0.7 * norms, rtol=0, atol=1e-12)
    by_token = attack(loss, x, allowed, Ball(0.7, per="token"), one)
    torch.testing.assert_close(by_token.loss - by_token.clean, 0.7 * w.norm(dim=2).sum(dim=1), rtol=0, atol=1e-12)
    largest = attack(loss, x, allowed, Ball(0.7, norm="linf"), one)
    torch.testing.assert_close(largest.loss - largest.clean, 0.7 * w.abs().sum(dim=(1, 2)), rtol=0, atol=1e-12)
    shared = attack(loss, x, allowed, Ball(0.7, per="universal"), one)
    direction = w.sum(dim=(0, 1))
    torch.testing.assert_close(shared.delta, (0.7 * direction / direction.norm()).expand(3, 4, 5), rtol=0, atol=1e-14)


def test_a_span_and_a_whitened_ball_have_closed_forms_too():
    x, w, loss, allowed = _linear()
    basis = torch.linalg.qr(_noise(5, 2, seed=2)).Q.T
    inside = attack(loss, x, allowed, Ball(0.7, axes=basis), Attack(steps=1))
    along = (w @ basis.T) @ basis
    torch.testing.assert_close(inside.delta, 0.7 * along / along.norm(dim=2, keepdim=True), rtol=0, atol=1e-14)
    natural = _noise(500, 5, seed=3) @ torch.diag(torch.arange(1.0, 6)).double()
    root, covariance = whitening(natural), torch.cov(natural.T, correction=0)
    shrunk = 0.999 * covariance + 0.001 * covariance.trace() / 5 * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(root @ root, shrunk)
    white = attack(loss, x, allowed, Ball(0.7, axes=root), Attack(steps=1))
    distance = torch.linalg.solve(root, white.delta.flatten(0, 1).T).norm(dim=0)  # Mahalanobis
    torch.testing.assert_close(distance, torch.full((12,), 0.7, dtype=torch.float64))
    gain = (w @ root).norm(dim=2).sum(dim=1)
    torch.testing.assert_close(white.loss - white.clean, 0.7 * gain, rtol=0, atol=1e-12)


def test_no_ball_is_left_and_no_attack_lowers_the_loss():
    x, allowed = _noise(4, 6, 5), torch.ones(4, 6, dtype=torch.bool)
    allowed[:, 4:] = False

    def loss(delta):
        return torch.sin(3 * (x + delta)).sum(dim=(1, 2))

    before = None
    for steps in (1, 4, 16):
        for ball in (Ball(0.5), Ball(0.5, per="example"), Ball(0.5, norm="linf")):
            found = attack(loss, x, allowed, ball, Attack(steps=steps, random_start=True))
            assert (ball.lengths(found.delta) <= 0.5 * (1 + 1e-6)).all()
            assert (found.delta[:, 4:] == 0).all()
            assert (found.loss >= found.clean).all()
        shared = attack(loss, x, allowed, Ball(0.5, per="universal"), Attack(steps=steps)).delta
        assert (shared[:, 4:] == 0).all()
        assert torch.equal(shared[:, :4], shared[:1, :1].expand(4, 4, 5))
        now = attack(loss, x, allowed, Ball(0.5), Attack(steps=steps, step_size=0.05)).loss
        assert before is None or (now >= before).all()
        before = now


def test_radius_zero_is_the_model_bit_for_bit():
    lm = tiny_model("llama")
    examples = Answers.of(lm, ["w1 w2", "w3"], ["w4 w5", "w6"])
    x = lm.activations(examples.tokens, [POST])[POST]
    found = attack(lambda d: examples.loss(lm, {POST: lambda v: v + d}), x, examples.prompt, Ball(0))
    assert torch.equal(found.loss, examples.loss(lm))
    assert not found.delta.any()


def test_the_loss_of_answers_counts_their_tokens_alone():
    lm = tiny_model("llama")
    examples = Answers.of(lm, ["w1 w2", "w3"], ["w4 w5", "w6"])
    losses = lm.loss(examples.tokens, reduction="none")
    torch.testing.assert_close(examples.loss(lm), torch.stack([losses[0, 2:4].mean(), losses[1, 1]]))
    assert examples.prompt.sum(dim=1).tolist() == [2, 1]  # BOS and padding are not perturbed


@pytest.mark.parametrize("targeted", [False, True])
def test_training_lowers_the_loss_under_attack_and_leaves_the_model_given_alone(targeted):
    lm = tiny_model("llama")
    weights = {key: value.clone() for key, value in lm.model.state_dict().items()}
    prompts = [f"w{i} w{i + 1}" for i in range(8)]
    right, wrong = Answers.of(lm, prompts, ["w50"] * 8), Answers.of(lm, prompts, ["w51"] * 8)
    ball = Ball(2.0)
    settings = AdversarialTraining(
        sites=(POST,),
        ball=ball,
        attack=Attack(steps=3),
        targeted=targeted,
        steps=25,
        batch_size=8,
        lr=1e-2,
        retention=0.1,
    )
    hardened, record = latent_adversarial_training(lm, right, ["w9 w8 w7"] * 4, settings, wanted=wrong)
    # What the weights go down is the loss under the perturbation that is found, not that without one.
    delta = perturb(lm, right, POST, ball, Attack(steps=3), wrong if targeted else None)
    under = float(right.loss(lm, perturbed(POST, delta)).mean())
    assert record.attacked[0] == pytest.approx(under, rel=1e-6)
    assert under != pytest.approx(float(right.loss(lm).mean()), rel=0.05)
    assert record.attacked[-1] < 0.5 * record.attacked[0]
    assert success(hardened, right, wrong, POST, ball) < success(lm, right, wrong, POST, ball)
    assert all(torch.equal(value, weights[key]) for key, value in lm.model.state_dict().items())
    assert not any(p.requires_grad for p in hardened.model.parameters())


def test_retention_holds_the_copy_to_the_model_given_by_its_divergence():
    """What is recorded at the second step is `KL(before || after one step)`, and its weight keeps it small."""
    lm = tiny_model("llama")
    prompts, texts = [f"w{i} w{i + 1}" for i in range(4)], ["w9 w8 w7", "w20 w3"]
    right = Answers.of(lm, prompts, ["w50"] * 4)

    def trained(steps, retention):
        settings = AdversarialTraining(
            sites=(POST,), ball=Ball(0), steps=steps, batch_size=4, lr=1e-2, retention=retention
        )
        return latent_adversarial_training(lm, right, texts, settings)

    tokens = lm.tokenize(texts)
    once, _ = trained(1, 1.0)
    before, after = (model.logits(tokens)[tokens.mask].log_softmax(dim=-1) for model in (lm, once))
    kl = (before.exp() * (before - after)).sum(dim=-1).mean()
    _, record = trained(2, 1.0)
    assert record.kl[0] == 0
    assert record.kl[1] == pytest.approx(float(kl), rel=1e-6)
    free, held = (trained(12, weight)[1].kl[-1] for weight in (0.0, 30.0))
    assert held < 0.2 * free


def test_the_adversary_raises_the_right_answer_s_loss_or_lowers_the_wanted_one_s():
    """To first order by `e |g|`, `g` the gradient of that loss at each perturbed token."""
    lm = tiny_model("llama")
    right = Answers.of(lm, ["w1 w2", "w3"], ["w4 w5", "w6"])
    wanted = Answers.of(lm, ["w1 w2", "w3"], ["w7", "w8"])  # shorter: padding behind the answers differs
    ball = Ball(1e-4)
    for targeted, answers, sign in ((None, right, 1), (wanted, wanted, -1)):
        delta = perturb(lm, right, POST, ball, Attack(steps=1), targeted)
        assert delta.shape[:2] == right.tokens.ids.shape
        assert (delta[~right.prompt] == 0).all()
        at = torch.zeros(*answers.tokens.ids.shape, 16, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(answers.loss(lm, perturbed(POST, at)).sum(), at)
        gain = 1e-4 * (gradient.norm(dim=2) * answers.prompt).sum(dim=1)
        moved = answers.loss(lm, perturbed(POST, delta[:, : at.shape[1]])) - answers.loss(lm)
        torch.testing.assert_close(moved, sign * gain, rtol=2e-2, atol=0)


def test_success_without_a_budget_is_what_the_model_does_anyhow():
    lm = tiny_model("llama")
    prompts = ["w1 w2", "w3"]
    own, other = [], []
    for row in lm.generate(lm.tokenize(prompts), max_new_tokens=1).ids.tolist():
        own.append(lm.tokens_to_strings(torch.tensor([i for i in row if i != lm.tokenizer.pad_token_id][-1:]))[0])
        other.append("w5" if own[-1] != "w5" else "w6")
    said, unsaid = Answers.of(lm, prompts, own), Answers.of(lm, prompts, other)
    assert success(lm, said, unsaid, POST, Ball(0)) == 0
    assert success(lm, unsaid, said, POST, Ball(0)) == 1


def test_a_random_start_spends_nothing_on_tokens_that_may_not_be_perturbed():
    """One token of 200 may move: the whole of the drawn length, below 1, is its own."""
    x, allowed = _noise(1, 200, 5), torch.zeros(1, 200, dtype=torch.bool)
    allowed[0, 7] = True
    settings = Attack(steps=1, step_size=1e-6, random_start=True, seed=1)
    found = attack(lambda d: d.flatten(1).norm(dim=1), x, allowed, Ball(1.0, per="example"), settings)
    generator = torch.Generator().manual_seed(1)
    torch.randn(1, 200, 5, generator=generator, dtype=torch.float64)
    share = torch.rand(1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(found.loss, share, rtol=0, atol=1e-5)


def test_a_larger_ball_holds_a_larger_loss():
    x, _, _, allowed = _linear()

    def loss(delta):
        return torch.tanh(x + delta).sum(dim=(1, 2))

    gains = torch.stack([attack(loss, x, allowed, Ball(r), Attack(steps=20)).loss for r in (0.1, 0.2, 0.4, 0.8)])
    assert (gains.diff(dim=0) > 0).all()


def test_an_adversary_of_named_latents_stays_in_their_span():
    dictionary = tiny_dictionary()
    basis = span_of_latents(dictionary, [2, 7])
    torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=torch.float64))
    atoms = dictionary.atoms.detach()[[2, 7]]
    torch.testing.assert_close((atoms @ basis.T) @ basis, atoms)
    with pytest.raises(ValueError, match=r"in \[0, 40\)"):
        span_of_latents(dictionary, [40])


def test_wrong_attacks_are_refused():
    x, _, loss, allowed = _linear()
    with pytest.raises(ValueError, match="radius"):
        Ball(-1)
    with pytest.raises(ValueError, match="axes have width 4, the activations have 5"):
        attack(loss, x, allowed, Ball(1, axes=torch.ones(2, 4, dtype=torch.float64)))
    with pytest.raises(DataError, match="no token"):
        attack(loss, x, ~allowed, Ball(1))
    with pytest.raises(DataError, match="not finite at step 0"):
        attack(lambda d: loss(d) * torch.nan, x, allowed, Ball(1))
    with pytest.raises(ValueError, match="one answer for each"):
        Answers.of(tiny_model("llama"), ["w1"], [])
    lm = tiny_model("llama")
    settings, examples = AdversarialTraining(sites=(POST,), ball=Ball(1), targeted=True), Answers.of(lm, ["w1"], ["w2"])
    with pytest.raises(ValueError, match="wanted"):
        latent_adversarial_training(lm, examples, ["w1 w2"], settings)
