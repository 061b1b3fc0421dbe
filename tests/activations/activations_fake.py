"""A language model small enough to reason about: what it computes at a token is a known function of what it saw."""

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from sparsight.errors import DataError, ModelError
from sparsight.models import Site, Tokens

BOS, EOS, PAD = 1, 2, 0
SITES = [Site.parse("0.resid_post"), Site.parse("1.resid_post")]
WIDTHS = {SITES[0]: 8, SITES[1]: 6}


class FakeModel:
    """Words are numbers from 3 up; BOS and EOS stand around every text.

    At site 0 the activation of token `v` at place `p` is `(v, p, sum of the context's tokens, 0 ...)`, so that a row
    tells where it was read and that its whole context was seen. At site 1 it is minus that, shorter.
    """

    name = "fake"
    family = "fake"
    max_context = 512
    device = torch.device("cpu")
    tokenizer = SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS)

    def __init__(self, poison: int | None = None, value: float = float("nan")) -> None:
        self.poison = poison
        self.value = value

    def sites(self) -> list[Site]:
        return SITES

    def width(self, site: Site) -> int:
        if site not in WIDTHS:
            raise ModelError(f"fake has no site {site}; it has {', '.join(map(str, SITES))}")
        return WIDTHS[site]

    def tokenize(self, texts: Sequence[str], *, context: int | None = None) -> Tokens:
        if not all(text.split() for text in texts):
            raise DataError("a text gives no tokens")
        rows = [[BOS, *(int(word) for word in text.split()), EOS][:context] for text in texts]
        t = max(len(row) for row in rows)
        ids = torch.tensor([row + [PAD] * (t - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (t - len(row)) for row in rows])
        return Tokens(ids, mask, mask & ((ids == BOS) | (ids == EOS)))

    def activations(self, tokens: Tokens, sites: Sequence[Site]) -> dict[Site, Tensor]:
        ids = tokens.ids.float()
        x = torch.zeros(*ids.shape, 8)
        x[..., 0] = ids
        x[..., 1] = torch.arange(ids.shape[1])
        x[..., 2] = (ids * tokens.mask).sum(dim=1, keepdim=True)
        if self.poison is not None:
            x[tokens.ids == self.poison] = self.value
        both = {SITES[0]: x, SITES[1]: -x[..., :6]}
        return {site: both[site] for site in sites}


class Labelled:
    """A document with a number and a label per token: whether the token is even."""

    def __init__(self, number: int, text: str) -> None:
        self.id = number
        self.text = text
        words = [int(word) for word in text.split()]
        self.labels = {"even": [int(word % 2 == 0) for word in words], "small": [int(word < 50) for word in words]}


def texts(n: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Documents of 1 to `longest` words."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=g).tolist()
    return [" ".join(str(v) for v in torch.randint(3, 100, (m,), generator=g).tolist()) for m in lengths]
