"""Losses over vectors of parameters: modules, minibatches, masks; each route against the plain one."""

import pytest
import torch
from torch import nn

from sparsight.theory.learning_coefficient import FunctionLoss, ModuleLoss
from sparsight.theory.learning_coefficient.posterior import posterior_near


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double().eval()


def data(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randn(n, 1, generator=g, dtype=torch.float64)


def squared(model, x, y):
    return (model(x) - y).square().mean()


def near(loss, chains=5):
    g = torch.Generator().manual_seed(2)
    return loss.parameters() + 0.3 * torch.randn(chains, len(loss.parameters()), generator=g, dtype=torch.float64)


def test_a_module_as_a_function_of_a_vector_is_the_module_with_these_parameters():
    module, (x, y) = net(), data()
    loss = ModuleLoss(module, squared, (x, y))
    rows = near(loss)
    found = loss.at(rows)
    for row, value in zip(rows, found, strict=True):
        copy = net(7)
        nn.utils.vector_to_parameters(row, copy.parameters())
        torch.testing.assert_close(squared(copy, x, y), value)
    torch.testing.assert_close(loss.at(loss.parameters()[None])[0], squared(module, x, y))


@pytest.mark.parametrize("options", [{"chunk_size": 7}, {"vectorised": False}, {"vectorised": False, "chunk_size": 1}])
def test_chunks_and_loops_give_what_one_batch_of_chains_gives(options):
    plain, other = ModuleLoss(net(), squared, data()), ModuleLoss(net(), squared, data(), **options)
    w = near(plain).requires_grad_()
    torch.testing.assert_close(other.at(w), plain.at(w))
    (first,), (second,) = (torch.autograd.grad(loss.at(w).sum(), w) for loss in (plain, other))
    torch.testing.assert_close(second, first)


@pytest.mark.parametrize("vectorised", [True, False])
def test_minibatches_are_each_chains_own_and_right_on_average(vectorised):
    loss = ModuleLoss(net(), squared, data(), batch_size=4, vectorised=vectorised)
    assert not loss.full_batch
    same = loss.parameters().expand(400, -1)
    values = loss.sampled(same, torch.Generator().manual_seed(0))
    assert len(values.unique()) > 300
    assert abs(float(values.mean() - loss.at(same[:1])[0])) < 4 * float(values.std()) / 20  # four standard errors


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_attention_has_a_curvature_and_is_batched_over_chains():
    """The fused kernel that it would run by itself has neither a second derivative nor a batching rule."""
    torch.manual_seed(0)
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    module = Attention().eval()

    def squared(model, x):
        return model(x).square().mean()

    found = {}
    for vectorised in (True, False):
        loss = ModuleLoss(module, squared, (x,), vectorised=vectorised)
        near = posterior_near(loss, loss.parameters(), 10.0, 1.0)
        found[vectorised] = near.curvature(loss.parameters().expand(2, -1), torch.Generator().manual_seed(1))
        torch.testing.assert_close(loss.at(loss.parameters()[None])[0], squared(module, x))
    torch.testing.assert_close(found[True], found[False])
    assert bool((found[True] > 1).all())


def test_a_mask_names_parameters_or_the_modules_they_lie_in():
    loss = ModuleLoss(net(), squared, data())
    assert loss.mask("0.bias").nonzero()[:, 0].tolist() == [12, 13, 14, 15]
    assert loss.mask("2").nonzero()[:, 0].tolist() == [16, 17, 18, 19, 20]
    assert loss.mask("0", "2").all()
    with pytest.raises(ValueError, match=r"named 'weight'.*there are: 0\.weight"):
        loss.mask("weight")


def test_a_function_of_a_vector_is_batched():
    plain = FunctionLoss(lambda w: (w[0] * w[1]) ** 2)
    rows = FunctionLoss(lambda w: (w[:, 0] * w[:, 1]) ** 2, batched=True)
    w = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    torch.testing.assert_close(plain.at(w), torch.tensor([4.0, 2.25]))
    torch.testing.assert_close(rows.at(w), plain.at(w))


def test_what_is_no_loss_over_data_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"module\.eval\(\)"):
        ModuleLoss(net().train(), squared, (x, y))
    with pytest.raises(ValueError, match="one length"):
        ModuleLoss(net(), squared, (x, y[:5]))
    with pytest.raises(ValueError, match="one length"):
        ModuleLoss(net(), squared, ())
    with pytest.raises(ValueError, match="one length above 0"):
        ModuleLoss(net(), squared, (x[:0], y[:0]))
    for size in ("batch_size", "chunk_size"):
        with pytest.raises(ValueError, match=f"{size} must be 1 or more"):
            ModuleLoss(net(), squared, (x, y), **{size: 0})
