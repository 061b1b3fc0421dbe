"""What a model reads: token ids, and which of them are text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences, padded to one length.

    Attributes:
        ids: Token ids; what stands under padding does not matter.
        mask: True for real tokens, False for padding.
        special: True where the tokenizer added a special token (BOS, EOS, CLS, SEP ...).
    """

    ids: Int64[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    special: Bool[Tensor, "b t"]

    def __post_init__(self) -> None:
        shapes = [list(part.shape) for part in (self.ids, self.mask, self.special)]
        if self.ids.dim() != 2 or shapes[0] != shapes[1] or shapes[0] != shapes[2]:
            raise ValueError(f"ids, mask and special must all be [b, t], got {', '.join(map(str, shapes))}")

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> "Tokens":
        return Tokens(self.ids[rows], self.mask[rows], self.special[rows])

    @property
    def counted(self) -> Bool[Tensor, "b t"]:
        """Tokens of the text itself: neither padding nor special. Measurements are taken over these."""
        return self.mask & ~self.special

    def to(self, device: torch.device | str) -> "Tokens":
        return Tokens(self.ids.to(device), self.mask.to(device), self.special.to(device))

    @staticmethod
    def pad(rows: Sequence[Sequence[int]], special: Sequence[Sequence[bool]], pad_id: int) -> "Tokens":
        """Sequences of unequal lengths as one batch, padded on the right.

        Args:
            rows: Token ids of each sequence.
            special: For each of them, whether the tokenizer added it.
            pad_id: Any id of the vocabulary; the mask, not the id, says what is padding.
        Raises:
            ValueError: no sequence came, or `special` does not have their lengths.
        """
        lengths = [len(row) for row in rows]
        if not lengths or lengths != [len(row) for row in special]:
            raise ValueError(f"expected at least one row, and special of the same lengths, got lengths {lengths}")
        longest = max(lengths)
        ids = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
        added = [[*map(bool, row), *[False] * (longest - len(row))] for row in special]
        mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
        return Tokens(
            torch.tensor(ids, dtype=torch.int64).reshape(len(lengths), longest),
            mask,
            torch.tensor(added, dtype=torch.bool).reshape(len(lengths), longest),
        )
