"""On a GPU: the sparse step through Triton against the dense step (`pytest -m cuda`)."""

import pytest
import torch

from sparsight.dictionaries import BatchTopK, DictionaryConfig, JumpReLU, Matryoshka, TopK
from sparsight.training import Training
from sparsight.training.adam import AdamRule
from sparsight.training.compiled.recorded import WARM
from sparsight.training.member import Member


@pytest.mark.cuda
@pytest.mark.parametrize(
    "config",
    [TopK(4096, 16), BatchTopK(4096, 16), Matryoshka(4096, 16, widths=(512, 2048)), JumpReLU(4096, target_l0=16)],
    ids=lambda config: config.architecture,
)
def test_the_sparse_step_on_a_gpu_is_the_dense_one(config: DictionaryConfig) -> None:
    g = torch.Generator().manual_seed(0)
    ends = []
    batches = [torch.randn(512, 256, generator=g).cuda() / 16 for _ in range(5)]
    for step in ("sparse", "dense"):
        it = Member("it", config, 256, Training(n_tokens=1000, batch_size=8, step=step), torch.device("cuda"))
        assert isinstance(it.rule, AdamRule)
        assert (it.rule.compiled is not None) == (step == "sparse")
        losses = [float(it.step(x, 1e-3, 1.0).loss.detach()) for x in batches]
        ends.append((losses, it.dictionary))
    (ours, sparse), (theirs, dense) = ends
    assert ours == pytest.approx(theirs, rel=2e-3)
    for (name, p), q in zip(sparse.named_parameters(), dense.named_parameters(), strict=True):
        close = torch.isclose(p, q[1], rtol=1e-2, atol=1e-3).float().mean()
        assert float(close) > 0.99, name
    torch.testing.assert_close(sparse.atoms.norm(dim=1), torch.ones(4096, device="cuda"))


@pytest.mark.cuda
def test_selection_on_a_gpu_is_that_of_a_sort() -> None:
    from sparsight.training.compiled.cuda_screen import CudaScreen
    from sparsight.training.compiled.selection import screened_batch_top_k, screened_top_k

    g = torch.Generator().manual_seed(0)
    encoder, x = torch.randn(8192, 512, generator=g).cuda(), torch.randn(300, 512, generator=g).cuda()
    offset = torch.randn(8192, generator=g).cuda()
    pre = x.double() @ encoder.double().T + offset
    slots = screened_top_k(CudaScreen(encoder), x, offset, 32)
    true = pre.topk(32, dim=1)
    torch.testing.assert_close(slots.values.view(300, 32).double(), true.values, rtol=1e-5, atol=1e-3)
    assert float((slots.latents.view(300, 32) == true.indices).float().mean()) > 0.999
    batch = screened_batch_top_k(CudaScreen(encoder), x, offset, 300 * 32)
    largest = pre.flatten().topk(300 * 32).values
    torch.testing.assert_close(batch.values.double().sort(descending=True).values, largest, rtol=1e-5, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "config",
    [TopK(4096, 16), BatchTopK(4096, 16), Matryoshka(4096, 16, widths=(512, 2048))],
    ids=lambda config: config.architecture,
)
def test_a_recorded_step_on_a_gpu_is_the_step(config: DictionaryConfig) -> None:
    """Bit for bit, with latents that die on the way and revive: such steps are not recorded."""
    g = torch.Generator().manual_seed(0)
    ours, theirs = (
        Member("it", config, 256, Training(n_tokens=1000, batch_size=8, step="sparse", clip=0.1), torch.device("cuda"))
        for _ in range(2)
    )
    rule, launched = (it.rule for it in (ours, theirs))
    assert isinstance(rule, AdamRule)
    assert isinstance(launched, AdamRule)
    compiled, other = rule.compiled, launched.compiled
    other.recorded = other.recorded_move = None
    for step in range(WARM + 12):
        x = torch.randn(512, 256, generator=g).cuda() / 16
        for it in (ours, theirs):
            it.silent.fill_(10**9 if step == WARM + 5 else 0)
        one, two = (it.step(x, 1e-3 / (1 + step), 1.0) for it in (ours, theirs))
        assert torch.equal(one.loss, two.loss)
        assert torch.equal(one.fired, two.fired)
    expected = theirs.tensors()
    for name, tensor in ours.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert compiled.recorded.played == compiled.recorded_move.played == 11
