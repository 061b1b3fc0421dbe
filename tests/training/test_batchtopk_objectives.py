"""BatchTopK and Matryoshka: losses and gradients against dense formulae, and the cases where selection is awkward."""

import math

import pytest
import torch
from reference.objectives_batchtopk import batchtopk_loss, matryoshka_loss
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary, BatchTopK, DictionaryConfig, Matryoshka, TopK
from sparsight.dictionaries.selection import batch_top_k_latents
from sparsight.training.objectives import OBJECTIVES, batchtopk_objective, matryoshka_objective, topk_objective
from sparsight.training.sparse_step import sparse_batch_top_k, sparse_prefixes

D, M, N = 6, 20, 40


def shaken(config: DictionaryConfig, seed: int = 1) -> AbstractDictionary:
    """A dictionary in float64 with every trained parameter moved off its symmetric start."""
    g = torch.Generator().manual_seed(seed)
    dictionary = config.build(D, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        dictionary.normalize_atoms_()
    return dictionary


def data(n: int = N, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, D, generator=g, dtype=torch.float64) / math.sqrt(D)


def some_dead(n_dead: int) -> Tensor:
    return torch.arange(M) < n_dead


def twin(dictionary: AbstractDictionary) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in dictionary.named_parameters()}


def assert_same_gradients(dictionary: AbstractDictionary, expected: dict[str, Tensor]) -> None:
    for name, parameter in dictionary.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-12, msg=name)


CASES = {
    "usual": (data(), 4, 0),
    "fewer dead than k_aux": (data(), 4, 2),
    "more dead than k_aux": (data(), 4, 9),
    "k of 1": (data(), 1, 9),
    "k of all": (data(), M, 0),
    "a batch of 1": (data(1), 3, 9),
    "a zero row": (torch.cat([torch.zeros(1, D, dtype=torch.float64), data()]), 4, 2),
}


@pytest.mark.parametrize(("x", "k", "n_dead"), CASES.values(), ids=CASES)
def test_batchtopk_loss_and_gradients_equal_the_dense_formula(x: Tensor, k: int, n_dead: int) -> None:
    dictionary = shaken(BatchTopK(M, k, aux=0.3, k_aux=3))
    dead = some_dead(n_dead if len(x) > 1 else 0)  # the residual of one token has no variance
    objective = batchtopk_objective(dictionary, x, dead)
    objective.loss.backward()
    parameters = twin(dictionary)
    expected = batchtopk_loss(parameters, x, dead, n_kept=k * len(x), aux=0.3, k_aux=3)
    expected.backward()
    torch.testing.assert_close(objective.loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(dictionary, parameters)


@pytest.mark.parametrize("weights", [None, (0.5, 0.0, 2.0)])
@pytest.mark.parametrize(("x", "k", "n_dead"), CASES.values(), ids=CASES)
def test_matryoshka_loss_and_gradients_equal_the_dense_formula(
    x: Tensor, k: int, n_dead: int, weights: tuple[float, ...] | None
) -> None:
    dictionary = shaken(Matryoshka(M, k, (1, 5, 12), weights=weights, aux=0.3, k_aux=3))
    dead = some_dead(n_dead if len(x) > 1 else 0)
    objective = matryoshka_objective(dictionary, x, dead)
    objective.loss.backward()
    parameters = twin(dictionary)
    prefixes = dict(zip((1, 5, 12, M), (*(weights or (1.0, 1.0, 1.0)), 1.0), strict=True))
    expected = matryoshka_loss(parameters, x, dead, n_kept=k * len(x), prefixes=prefixes, aux=0.3, k_aux=3)
    expected.backward()
    torch.testing.assert_close(objective.loss, expected, rtol=1e-12, atol=0)
    assert_same_gradients(dictionary, parameters)


def test_the_hand_written_backwards_equal_finite_differences() -> None:
    """Also in the activations; no pre-activation lies so near the selection's edge that a difference crosses it."""
    g = torch.Generator().manual_seed(3)
    shapes = [(5, 4), (4, 9), (9,), (9, 4), (4,)]
    inputs = [torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *args: sparse_batch_top_k(*args, n_kept=11)[0], inputs)
    widths = torch.tensor([2, 3, 9])
    assert torch.autograd.gradcheck(lambda *args: sparse_prefixes(*args, n_kept=11, widths=widths)[0], inputs)


def test_one_token_makes_batchtopk_topk_and_one_prefix_makes_matryoshka_batchtopk() -> None:
    x, dead = data(1), some_dead(0)
    one, other = shaken(BatchTopK(M, 3)), shaken(TopK(M, 3))
    torch.testing.assert_close(batchtopk_objective(one, x, dead).loss, topk_objective(other, x, dead).loss)
    x = data()
    whole = matryoshka_objective(shaken(Matryoshka(M, 3, (M,))), x, dead)
    torch.testing.assert_close(whole.loss, batchtopk_objective(one, x, dead).loss)
    assert set(whole.parts) == {"reconstruction"}


def test_the_loss_is_the_sum_of_its_parts_and_the_first_part_is_the_fvu_of_the_whole_width() -> None:
    dictionary, x = shaken(Matryoshka(M, M, (4, 8), aux=0.5)), data()
    objective = matryoshka_objective(dictionary, x, some_dead(5))
    torch.testing.assert_close(objective.loss.detach(), torch.stack(list(objective.parts.values())).sum())
    with torch.no_grad():
        dictionary.log_theta.fill_(-100)  # everything positive is active, as in the step with k of all
    expected = (x - dictionary(x)).square().sum(dim=1).mean().detach()
    torch.testing.assert_close(objective.parts["reconstruction"], expected)


@pytest.mark.parametrize("config", [BatchTopK(M, 4, aux=1.0), Matryoshka(M, 4, (5,), aux=1.0)])
def test_the_dead_hear_from_the_loss_and_silent_batches_give_no_nan(config: DictionaryConfig) -> None:
    dictionary = shaken(config)
    objective_of = OBJECTIVES[type(dictionary)]
    with torch.no_grad():
        dictionary.b_enc[:5] = -10
    objective_of(dictionary, data(), some_dead(5), 1.0).loss.backward()
    assert (dictionary.W_enc.grad[:, :5].norm(dim=0) > 1e-6).all()
    with torch.no_grad():
        dictionary.b_enc.fill_(-100)  # no latent is active at all
    for x in (data(), torch.zeros(3, D, dtype=torch.float64), data(1)):
        dictionary.zero_grad()
        objective = objective_of(dictionary, x, some_dead(0), 1.0)
        objective.loss.backward()
        assert float(objective.l0) == 0
        assert not objective.fired.any()
        offset_only = (x - dictionary.b_dec.detach()).square().sum() / len(x)
        torch.testing.assert_close(objective.parts["reconstruction"], offset_only)
        assert all(bool(torch.isfinite(p.grad).all()) for p in dictionary.parameters() if p.requires_grad)


def test_a_step_keeps_exactly_k_per_token_of_the_batch_and_says_who_fired() -> None:
    dictionary, x = shaken(BatchTopK(M, 3)), data()
    objective = batchtopk_objective(dictionary, x, some_dead(0))
    assert float(objective.l0) == 3
    pre = (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    edge = pre.flatten().topk(3 * N).values[-1]
    assert torch.equal(objective.fired, (pre >= edge).any(dim=0))


@pytest.mark.parametrize("config", [TopK(M, 2, k_start=10, k_anneal=0.5), BatchTopK(M, 2, k_start=10, k_anneal=0.5)])
def test_k_falls_on_a_straight_line_in_training_and_coding_keeps_the_last_k(config: DictionaryConfig) -> None:
    dictionary, x = shaken(config), data() + 1  # an offset, so that k latents are positive in most tokens
    coded = dictionary.encode_dense(x)
    l0 = []
    for progress in (0.0, 0.25, 0.4999, 0.5, 1.0):
        dictionary.schedule_(progress)
        l0.append(float(OBJECTIVES[type(dictionary)](dictionary, x, some_dead(0), 1.0).l0))
        assert torch.equal(dictionary.encode_dense(x), coded)
    assert l0 == pytest.approx([10, 6, 2, 2, 2], rel=0.15)
    assert type(dictionary)(type(config)(M, 2), dictionary.atoms.detach()).k_now == 2


def test_a_running_average_of_the_smallest_active_value_lags_behind_training() -> None:
    """What is usually stored as threshold: an average, with decay 0.999, over the steps of training."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(64, 32, generator=g), dim=1)
    support = torch.rand(60_000, 64, generator=g).topk(4, dim=1).indices
    x = torch.zeros(60_000, 64).scatter(1, support, 0.5 + torch.rand(60_000, 4, generator=g)) @ atoms
    x = (x - x.mean(dim=0)) / (x - x.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    dictionary = BatchTopK(64, 4).build(32, g)
    optimizer = torch.optim.Adam([p for p in dictionary.parameters() if p.requires_grad], lr=5e-3)
    running = None
    for batch in x[:16_000].split(128) * 2:
        optimizer.zero_grad()
        batchtopk_objective(dictionary, batch, torch.zeros(64, dtype=torch.bool)).loss.backward()
        optimizer.step()
        dictionary.normalize_atoms_()
        smallest = batch_top_k_latents(batch - dictionary.b_dec, dictionary.W_enc, dictionary.b_enc, 512).values.amin()
        running = smallest if running is None else 0.999 * running + 0.001 * smallest
    dictionary.requires_grad_(False).log_theta.copy_(running.log())
    lagging = float(dictionary.encode(x[38_000:]).l0().float().mean())
    dictionary.calibrate_([x[16_000:38_000]])
    fitted = float(dictionary.encode(x[38_000:]).l0().float().mean())
    assert abs(lagging - 4) > 0.4
    assert fitted == pytest.approx(4, rel=0.01)


def test_sampled_prefixes_follow_their_distribution_and_depend_on_progress_and_seed_alone() -> None:
    dictionary = shaken(Matryoshka(1024, 2, sampled=2))
    drawn = []
    for step in range(3000):
        dictionary.schedule_(step / 3000)
        assert dictionary.widths_now[-1] == 1024
        drawn.append(dictionary.widths_now[0])
    harmonic = sum(1 / w for w in range(1, 1024))
    for low, high in ((1, 2), (2, 8), (32, 64), (512, 1024)):
        chance = sum(1 / w for w in range(low, high)) / harmonic
        share = sum(low <= w < high for w in drawn) / 3000
        assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / 3000)
    other = shaken(Matryoshka(1024, 2, sampled=2))
    other.schedule_(700 / 3000)
    assert other.widths_now[0] == drawn[700]
    seeded = shaken(Matryoshka(1024, 2, sampled=5, seed=1))
    widths = set()
    for step in range(20):
        seeded.schedule_(step / 20)
        assert len(set(seeded.widths_now)) == 5 == len(seeded.widths_now)
        assert list(seeded.widths_now) == sorted(seeded.widths_now)
        widths.add(seeded.widths_now)
    assert len(widths) > 15


@pytest.mark.parametrize("weights", [None, (0.1, 0.3)])
def test_sampled_prefixes_enter_the_loss(weights: tuple[float, float] | None) -> None:
    dictionary = shaken(Matryoshka(M, 4, sampled=3, weights=weights, aux=0.0))
    dictionary.schedule_(0.37)
    objective = matryoshka_objective(dictionary, data(), some_dead(0))
    prefixes = dict(zip(dictionary.widths_now, (*(weights or (1.0, 1.0)), 1.0), strict=True))
    expected = matryoshka_loss(twin(dictionary), data(), some_dead(0), n_kept=4 * N, prefixes=prefixes, aux=0, k_aux=1)
    torch.testing.assert_close(objective.loss, expected, rtol=1e-12, atol=0)
