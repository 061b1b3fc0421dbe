"""The evaluation code of SAELens and SAEBench on the same activations and codes as ours.

Runs in an environment with `sae-lens` and `sae-bench`, and `src` on the path; prints one line for each code, batch
size and case. Their functions get stand-ins for a model and a store that hand out the arrays batch by batch.

    PYTHONPATH=src python benchmarks/evaluation_peers.py
"""

from types import SimpleNamespace
from typing import Any

import sae_bench.evals.core.main as saebench
import sae_lens.evals as saelens
import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.evaluation import metrics
from sparsight.evaluation.token_scales import TokenScales

HOOK = "blocks.0.hook_resid_post"
PROMPTS = 4


class Batches:
    """A dictionary, a model and a store in one: what their functions ask of each, from arrays."""

    device = "cpu"

    def __init__(self, x: Tensor, x_hat: Tensor, z: Tensor, size: int) -> None:
        self.parts = [[part.view(PROMPTS, -1, t.shape[1]) for part in t.split(size)] for t in (x, x_hat, z)]
        self.tokens = torch.ones(PROMPTS, size // PROMPTS, dtype=torch.long)
        self.at = -1
        where = SimpleNamespace(hook_name=HOOK, hook_head_index=None)
        self.cfg = SimpleNamespace(hook_name=HOOK, hook_head_index=None, hook_layer=0, d_sae=z.shape[1], metadata=where)

    def get_batch_tokens(self, _: int) -> Tensor:
        self.at += 1
        return self.tokens

    def run_with_cache(self, *_: Any, **__: Any) -> tuple[None, dict[str, Tensor]]:
        return None, {HOOK: self.parts[0][self.at]}

    def encode(self, _: Tensor) -> Tensor:
        return self.parts[2][self.at]

    def decode(self, _: Tensor) -> Tensor:
        return self.parts[1][self.at]

    def scale(self, x: Tensor) -> Tensor:
        return x

    unscale = scale


def theirs(module: Any, x: Tensor, x_hat: Tensor, z: Tensor, size: int) -> dict[str, float]:
    """Their numbers, in batches of `size` tokens."""
    batches = Batches(x, x_hat, z, size)
    given = [batches] * (4 if module is saelens else 3)
    found, latents = module.get_sparsity_and_variance_metrics(
        *given,
        n_batches=len(x) // size,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        eval_batch_size_prompts=PROMPTS,
        model_kwargs={},
        ignore_tokens=[] if module is saelens else set(),
    )
    density = latents["feature_density"]
    return found | {"density": sum(density) / len(density)}


def ours(x: Tensor, x_hat: Tensor, z: Tensor) -> dict[str, float]:
    """The same numbers by our definitions."""
    code = SparseCode.from_dense(z)
    return {
        "explained_variance": 1 - metrics.fvu(x, x_hat),
        "explained_variance_legacy": 1 - metrics.fvu_token_mean(x, x_hat),
        "mse": float((x.double() - x_hat.double()).square().sum(dim=1).mean()),
        "cossim": metrics.cosine(x, x_hat),
        "l0": metrics.l0(code),
        "l1": float(z.double().abs().sum(dim=1).mean()),
        "l2_ratio": TokenScales.of(x, x_hat).norm_ratio,
        "relative_reconstruction_bias": metrics.shrinkage(x, x_hat).r,
        "density": float(metrics.density(code).mean()),
    }


def cases(n: int = 4096, d: int = 64, m: int = 256) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Activations, reconstructions and codes."""
    g = torch.Generator().manual_seed(123)
    atoms = torch.nn.functional.normalize(torch.randn(m, d, generator=g), dim=1)
    z = torch.randn(n, m, generator=g).relu() * (torch.rand(n, m, generator=g) < 0.05)
    x = z @ atoms + 0.1 * torch.randn(n, d, generator=g)
    x, x_hat = x - x.mean(dim=0), 0.9 * (z @ atoms)
    x_hat = x_hat - x_hat.mean(dim=0)
    mean = torch.full((d,), 1.5)
    signs = torch.where(torch.rand(n, m, generator=g) < 0.5, -1.0, 1.0)
    sink, sink_hat = x.clone(), x_hat.clone()
    sink[::128] *= 100
    sink_hat[::128] *= 130
    return {
        "zero mean": (x, x_hat, z),
        "large mean": (x + mean, x_hat + mean, z),
        "answers almost the mean": (x + mean, mean + 1e-4 * x_hat, z),
        "zero mean, times 30": (30 * x, 30 * x_hat, 30 * z),
        "signed codes": (x, x_hat, z * signs),
        "one token in 128 with 100 times the norm": (sink, sink_hat, z),
    }


def main() -> None:
    for name, arrays in cases().items():
        print(name)
        rows = {"sparsight": ours(*arrays)}
        for size in (512, 2048):
            for module, label in ((saebench, "SAEBench"), (saelens, "SAELens")):
                rows[f"{label}, {size} tokens a batch"] = theirs(module, *arrays, size)
        for label, row in rows.items():
            print(" ", label, {key: round(value, 6) for key, value in row.items()})
    g = torch.Generator().manual_seed(7)
    logits = torch.randn(2, 5, 50, generator=g)
    far = logits.clone()
    far[..., 0] += 2000
    print(
        "KL where a probability underflows:",
        float(metrics.next_token_kl(logits, far).mean()),
        "SAELens:",
        float(saelens._kl(logits, far)[:, :-1].mean()),
    )


if __name__ == "__main__":
    main()
