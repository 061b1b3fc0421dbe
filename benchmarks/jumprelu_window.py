"""How wide JumpReLU's window should be: FVU, L0 and silent latents on held-out activations, for several widths.

    sparsight harvest --dataset organism --site 2.resid_post --tokens 120000 --out runs/window
    python benchmarks/jumprelu_window.py runs/window --latents 1024 --k 16

Windows are in deviations of a pre-activation at the start, `1 / sqrt(d_in)`.
"""

import argparse
import tempfile

from sparsight.activations import ActivationStore
from sparsight.dictionaries import JumpReLU
from sparsight.evaluation.metrics import fvu
from sparsight.training import Training, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", help="Folder that `sparsight harvest` wrote, with one site.")
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--k", type=float, default=16.0, help="Mean L0 to reach.")
    parser.add_argument("--windows", type=float, nargs="+", default=[0.1, 0.34, 0.8, 1.0, 1.2, 2.0])
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    store = ActivationStore(args.store)
    [site] = store.sites
    test = store.split("heldout").rows(site, slice(0, 8_000))
    training = Training(n_tokens=args.tokens, batch_size=1024, lr=2e-3, seed=args.seed)
    print("window  bandwidth     FVU     L0  silent")
    for window in args.windows:
        bandwidth = window / store.width(site) ** 0.5
        config = JumpReLU(args.latents, target_l0=args.k, bandwidth=bandwidth, dead_after=50_000)
        with tempfile.TemporaryDirectory() as folder:
            dictionary = train(store, [config], training, out=folder)[0].dictionary
        code = dictionary.encode(test)
        silent = 1 - float((code.to_dense() > 0).any(dim=0).float().mean())
        error, l0 = fvu(test, dictionary.decode(code)), float(code.l0().float().mean())
        print(f"{window:6.2f}  {bandwidth:9.4f}  {error:.4f}  {l0:5.1f}  {silent:6.1%}", flush=True)


if __name__ == "__main__":
    main()
