"""On a GPU: the sparse step through Triton against the dense step (`pytest -m cuda`)."""

import pytest
import torch

from sparsight.dictionaries import BatchTopK, DictionaryConfig, JumpReLU, Matryoshka, TopK
from sparsight.training import Training
from sparsight.training.adam import AdamRule
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
