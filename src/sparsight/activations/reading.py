"""A window of contexts through the model: rows at every site, in the order of the contexts, checked to be finite."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations.contexts import Context, Reads
from sparsight.errors import DataError
from sparsight.models import Site, Tokens
from sparsight.models.tokenization import padding_id


@dataclass(frozen=True)
class Window:
    """Contexts and what was read of them.

    Attributes:
        contexts: In the order of the documents.
        activations: One row for each counted token of each context; fewer when the last context is cut.
    """

    contexts: list[Context]
    activations: dict[Site, Float[Tensor, "rows d"]]

    @property
    def n_rows(self) -> int:
        """Rows at each site."""
        return len(next(iter(self.activations.values())))


def read_window(
    lm: Reads,
    contexts: Sequence[Context],
    sites: Sequence[Site],
    dtype: torch.dtype,
    batch_size: int,
    max_rows: int | None = None,
) -> Window:
    """Run the model over contexts, those of like length together, and keep one row per counted token.

    Rounding inside the model depends on what a context is batched with; the batches here follow from the window alone,
    so the same window gives the same bits.

    Args:
        dtype: Type of the rows. float16 holds magnitudes up to 65,504.
        max_rows: Rows kept; the rest of the last context is dropped.
    Raises:
        DataError: an activation is not finite, or does not fit into `dtype`.
    """
    counts = torch.tensor([context.n_counted for context in contexts])
    starts = counts.cumsum(0) - counts
    n_rows = int(counts.sum())
    rows = {site: torch.empty(n_rows, lm.width(site), dtype=dtype) for site in sites}
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i].ids))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = [contexts[i] for i in chosen]
        tokens = pad(
            [context.ids for context in batch], [context.special for context in batch], padding_id(lm.tokenizer)
        )
        counted = tokens.mask & ~tokens.special
        # Row in the window of every counted token, in the order in which a boolean mask lists them.
        target = (starts[chosen][:, None] + counted.cumsum(1) - 1)[counted]
        with torch.no_grad():
            read = lm.activations(tokens.to(lm.device), sites)
        for site in sites:
            x = read[site][counted.to(lm.device)]
            _refuse_unusable(x, dtype, site, batch, counted)
            rows[site].index_copy_(0, target, x.to(device="cpu", dtype=dtype))
    return Window(list(contexts), {site: rows[site][:max_rows] for site in sites})


def pad(ids: Sequence[Tensor], special: Sequence[Tensor], token: int) -> Tokens:
    """Contexts of unequal length side by side, padded on the right."""
    whole = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=token)
    mask = torch.arange(whole.shape[1])[None] < torch.tensor([len(row) for row in ids])[:, None]
    return Tokens(whole, mask, torch.nn.utils.rnn.pad_sequence(list(special), batch_first=True))


def _refuse_unusable(x: Tensor, dtype: torch.dtype, site: Site, batch: list[Context], counted: Tensor) -> None:
    low, high = (float(bound) for bound in torch.aminmax(x))  # NaN wins both
    limit = torch.finfo(dtype).max
    if -limit <= low and high <= limit:
        return
    bad = ~(x.float().abs() <= limit).all(dim=1).cpu()
    row = int(bad.nonzero()[0, 0])
    document = batch[int(counted.nonzero()[row, 0])].document_id
    value = x[row]
    if bool(value.isfinite().all()):
        raise DataError(
            f"an activation of magnitude {float(value.abs().max()):.4g} at {site} in document {document} does not fit "
            f"into {str(dtype).removeprefix('torch.')} (largest: {limit:.6g}); store as bfloat16 or float32"
        )
    raise DataError(
        f"an activation at {site} in document {document} is not finite (NaN or infinite); "
        "check the model's weights, or load it in float32"
    )
