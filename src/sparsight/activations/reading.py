"""A window of contexts through the model: rows at every site, in the order of the contexts, checked to be finite."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from sparsight.activations.contexts import Reads
from sparsight.activations.pieces import Context
from sparsight.activations.record import Cursor
from sparsight.activations.rounding import from_int8, limit, to_int8
from sparsight.errors import DataError
from sparsight.models import Site, Tokens
from sparsight.models.tokenization import padding_id


@dataclass(frozen=True)
class Window:
    """Contexts and what was read of them.

    Attributes:
        contexts: In the order of the documents.
        stored: For each context, True at the tokens that have a row.
        activations: One row for each stored token, in the type of the store.
        scales: For int8, what each row is to be multiplied by; empty otherwise.
        sums: For each row what rounding lost, its squared norm, and its squared distance from the mean of the window.
        end: The place in the documents just after the window.
        excluded: For each context, how many tokens have no row because their norm was too large.
    """

    contexts: list[Context]
    stored: list[Bool[Tensor, " _"]]
    activations: dict[Site, Shaped[Tensor, "rows _"]]
    scales: dict[Site, Float[Tensor, " rows"]]
    sums: dict[Site, Float64[Tensor, "rows 3"]]
    end: Cursor
    excluded: list[int]

    @property
    def n_rows(self) -> int:
        """Rows at each site."""
        return len(next(iter(self.activations.values())))

    def cut(self, n_rows: int) -> "Window":
        """The first rows, and the contexts up to the one that holds the last of them, which is kept whole."""
        if n_rows >= self.n_rows:
            return self
        ends = torch.tensor([int(stored.sum()) for stored in self.stored]).cumsum(0)
        last = int(torch.searchsorted(ends, n_rows))  # the first context that ends with row n_rows or behind
        stored = self.stored[: last + 1]
        surplus = int(ends[last]) - n_rows
        if surplus:
            places = stored[last].nonzero()[:, 0]
            stored = [*stored[:last], stored[last].clone()]
            stored[last][places[-surplus:]] = False
        return Window(
            self.contexts[: last + 1],
            stored,
            {site: rows[:n_rows] for site, rows in self.activations.items()},
            {site: rows[:n_rows] for site, rows in self.scales.items()},
            {site: rows[:n_rows] for site, rows in self.sums.items()},
            self.contexts[last].end,
            self.excluded[: last + 1],
        )


@dataclass(frozen=True)
class Reading:
    """What is read of a window; the same for all windows of a store.

    Attributes:
        sites: In one pass, which stops after the deepest.
        dtype: As rows are stored. float16 holds magnitudes up to 65,504.
        batch_size: Contexts in a forward pass.
        special_rows: Whether special tokens have rows too.
        max_norm: Tokens whose norm at some site exceeds this multiple of the median norm there, over the window, have
            no row. None: all have.
    """

    sites: list[Site]
    dtype: torch.dtype
    batch_size: int
    special_rows: bool = False
    max_norm: float | None = None

    def count(self, context: Context) -> int:
        """Rows of a context, as long as none is excluded for its norm."""
        return len(context.ids) if self.special_rows else context.n_counted


def read_window(lm: Reads, contexts: Sequence[Context], reading: Reading) -> Window:
    """Run the model over contexts, those of like length together, and keep their rows.

    Rounding inside the model depends on what a context is batched with; the batches here follow from the window alone,
    so the same window gives the same bits.

    Raises:
        DataError: an activation is not finite, or does not fit into the type.
    """
    counts = torch.tensor([reading.count(context) for context in contexts])
    starts = counts.cumsum(0) - counts
    n_rows = int(counts.sum())
    rows = {site: torch.empty(n_rows, lm.width(site), dtype=reading.dtype) for site in reading.sites}
    scales = {site: torch.empty(n_rows) for site in reading.sites if reading.dtype == torch.int8}
    sums = {site: torch.zeros(n_rows, 3, dtype=torch.float64) for site in reading.sites}
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i].ids))
    for begin in range(0, len(order), reading.batch_size):
        chosen = order[begin : begin + reading.batch_size]
        batch = [contexts[i] for i in chosen]
        tokens = pad(
            [context.ids for context in batch], [context.special for context in batch], padding_id(lm.tokenizer)
        )
        wanted = tokens.mask if reading.special_rows else tokens.mask & ~tokens.special
        # Row in the window of every wanted token, in the order in which a boolean mask lists them.
        target = (starts[chosen][:, None] + wanted.cumsum(1) - 1)[wanted]
        with torch.no_grad():
            read = lm.activations(tokens.to(lm.device), reading.sites)
        for site in reading.sites:
            x = read[site][wanted.to(lm.device)]
            _refuse_unusable(x, reading.dtype, site, batch, wanted)
            stored, scale = to_int8(x) if reading.dtype == torch.int8 else (x.to(reading.dtype), None)
            rows[site].index_copy_(0, target, stored.cpu())
            if scale is not None:
                scales[site].index_copy_(0, target, scale.cpu())
            sums[site].index_copy_(0, target, _row_sums(x, stored, scale).cpu())
    marks = [torch.ones_like(c.special) if reading.special_rows else ~c.special for c in contexts]
    for site in reading.sites:
        sums[site][:, 2] = _deviations(rows[site], scales.get(site))
    whole = Window(list(contexts), marks, rows, scales, sums, contexts[-1].end, [0] * len(contexts))
    return whole if reading.max_norm is None else _without_outliers(whole, reading.max_norm)


def _row_sums(x: Tensor, stored: Tensor, scale: Tensor | None) -> Tensor:
    """Squared error and squared norm of every row, and room for its deviation."""
    exact = x.float()
    back = from_int8(stored, scale) if scale is not None else stored.float()
    error = torch.zeros(len(x), device=x.device) if stored.dtype == x.dtype else (exact - back).square().sum(dim=1)
    return torch.stack([error, exact.square().sum(dim=1), torch.zeros_like(error)], dim=1).double()


def _deviations(rows: Tensor, scales: Tensor | None) -> Tensor:
    """Squared distance of every row from the mean row, in blocks that stay in the cache."""
    mean = torch.zeros(rows.shape[1], dtype=torch.float64)
    blocks = [slice(begin, begin + 1024) for begin in range(0, len(rows), 1024)]

    def read(block: slice) -> Tensor:
        return from_int8(rows[block], scales[block]) if scales is not None else rows[block].float()

    for block in blocks:
        mean += read(block).sum(dim=0)
    center = (mean / max(1, len(rows))).float()
    return torch.cat([(read(block) - center).square().sum(dim=1).double() for block in blocks])


def _without_outliers(window: Window, max_norm: float) -> Window:
    """Drop the rows whose norm at some site is more than `max_norm` times the median norm there."""
    kept = torch.ones(window.n_rows, dtype=torch.bool)
    for sums in window.sums.values():
        norms = sums[:, 1].sqrt()
        kept &= norms <= max_norm * norms.median()
    if bool(kept.all()):
        return window
    stored, excluded = [], []
    for mark, here in zip(window.stored, torch.split(kept, [int(mark.sum()) for mark in window.stored]), strict=True):
        stored.append(torch.zeros_like(mark).masked_scatter_(mark, here))
        excluded.append(int((~here).sum()))
    return Window(
        window.contexts,
        stored,
        {site: rows[kept] for site, rows in window.activations.items()},
        {site: scales[kept] for site, scales in window.scales.items()},
        {site: sums[kept] for site, sums in window.sums.items()},
        window.end,
        excluded,
    )


def pad(ids: Sequence[Tensor], special: Sequence[Tensor], token: int) -> Tokens:
    """Contexts of unequal length side by side, padded on the right."""
    whole = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=token)
    mask = torch.arange(whole.shape[1])[None] < torch.tensor([len(row) for row in ids])[:, None]
    return Tokens(whole, mask, torch.nn.utils.rnn.pad_sequence(list(special), batch_first=True))


def _refuse_unusable(x: Tensor, dtype: torch.dtype, site: Site, batch: list[Context], counted: Tensor) -> None:
    if not len(x):
        return
    low, high = (float(bound) for bound in torch.aminmax(x))  # NaN wins both
    most = limit(dtype)
    if -most <= low and high <= most:
        return
    bad = ~(x.float().abs() <= most).all(dim=1).cpu()
    row = int(bad.nonzero()[0, 0])
    document = batch[int(counted.nonzero()[row, 0])].document_id
    value = x[row]
    if bool(value.isfinite().all()):
        raise DataError(
            f"an activation of magnitude {float(value.abs().max()):.4g} at {site} in document {document} does not fit "
            f"into {str(dtype).removeprefix('torch.')} (largest: {most:.6g}); store as bfloat16 or float32"
        )
    raise DataError(
        f"an activation at {site} in document {document} is not finite (NaN or infinite); "
        "check the model's weights, or load it in float32"
    )
