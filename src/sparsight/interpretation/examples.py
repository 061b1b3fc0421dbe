"""The contexts in which a latent is most active, found in one pass over a store."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.interpretation.reading import Encodes, StoredActivations, codes_of, site_of


@dataclass(frozen=True)
class Example:
    """A stretch of text around the token at which a latent peaks.

    Attributes:
        tokens: The text, token by token.
        values: Value of the latent at each token, in the units of the activations.
        peak: Index into both of the token the example was chosen for.
        document: Number of the document in the store.
        position: Place of the peak's token in its context, as the store counts it.
        cut_before: Text of the same document goes on before the first token.
        cut_after: Text of the same document goes on after the last token.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    peak: int
    document: int
    position: int
    cut_before: bool = False
    cut_after: bool = False


@dataclass(frozen=True)
class _Places:
    """Rows of a store in which chosen latents are active: candidates for an example, in no order."""

    slot: Int64[Tensor, " m"]
    row: Int64[Tensor, " m"]
    document: Int64[Tensor, " m"]
    value: Float[Tensor, " m"]

    def __getitem__(self, index: Tensor) -> "_Places":
        return _Places(self.slot[index], self.row[index], self.document[index], self.value[index])

    def __add__(self, other: "_Places") -> "_Places":
        return _Places(
            torch.cat([self.slot, other.slot]),
            torch.cat([self.row, other.row]),
            torch.cat([self.document, other.document]),
            torch.cat([self.value, other.value]),
        )

    def strongest(self, group: Tensor, n: int) -> "_Places":
        """For each slot, the `n` strongest places, no two of one group. Equal values: the earlier row."""
        order = _sorted_by(self.row, -self.value, group, self.slot)
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = (self.slot[order].diff() != 0) | (group[order].diff() != 0)
        kept = self[order[first]]
        order = _sorted_by(kept.row, -kept.value, kept.slot)
        counts = torch.bincount(kept.slot)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(order)) - starts[kept.slot[order]]
        return kept[order[rank < n]]


def _sorted_by(*keys: Tensor) -> Tensor:
    """The order that sorts by the last key, then by the one before it, and so on."""
    order = torch.arange(len(keys[0]))
    for key in keys:
        order = order[key[order].sort(stable=True).indices]
    return order


@torch.no_grad()
def top_contexts(
    dictionary: Encodes,
    store: StoredActivations,
    latents: Sequence[int],
    *,
    tokens_to_strings: Callable[[Int64[Tensor, " t"]], list[str]],
    n_contexts: int = 8,
    window: int = 24,
    batch_size: int = 4096,
) -> dict[int, list[Example]]:
    """For each chosen latent, the places where it is most active, with the text around them.

    One pass keeps the strongest places, one per document; a second codes only the windows around the places that
    stayed. Memory is that of one batch of sparse codes and of the windows, whatever the length of the store or the
    width of the dictionary. Where the latent is active in fewer than `n_contexts` documents, the list is filled from
    places of the same documents more than `window` tokens away from those already there.

    Args:
        dictionary: Codes the activations.
        store: Activations and their tokens; pass `store.split("heldout")` for text not trained on.
        latents: Latents to look at, each once.
        tokens_to_strings: Turns token ids into text, one string per token: a language model's method of that name.
        n_contexts: Most examples per latent.
        window: Tokens shown before and after the peak; fewer at the ends of the context that the model saw.
        batch_size: Activations coded at once.
    Returns:
        Examples by latent, strongest first; an empty list for a latent whose value is never above 0.
    Raises:
        ValueError: a latent is repeated or outside the dictionary, or a count is out of range.
    """
    _check(latents, dictionary.n_latents, n_contexts, window)
    places = _strongest_places(dictionary, store, latents, n_contexts, window, batch_size)
    examples: dict[int, list[Example]] = {latent: [] for latent in latents}
    step = max(1, batch_size // (2 * window + 1))
    for start in range(0, len(places), step):
        for slot, example in _windows(
            dictionary, store, places[start : start + step], latents, window, tokens_to_strings
        ):
            examples[latents[slot]].append(example)
    return examples


def _check(latents: Sequence[int], n_latents: int, n_contexts: int, window: int) -> None:
    if len(set(latents)) != len(latents):
        raise ValueError(f"latents must differ, got {len(latents) - len(set(latents))} repeated")
    outside = [latent for latent in latents if not 0 <= latent < n_latents]
    if outside:
        raise ValueError(f"latents must be between 0 and {n_latents - 1}, got {outside[0]}")
    if n_contexts < 1 or window < 0:
        raise ValueError(f"n_contexts must be at least 1 and window at least 0, got {n_contexts} and {window}")


def _strongest_places(
    dictionary: Encodes, store: StoredActivations, latents: Sequence[int], n: int, window: int, batch_size: int
) -> list[tuple[int, int]]:
    """Pairs (index into `latents`, row), at most `n` per latent, strongest first."""
    slots = torch.full((dictionary.n_latents,), -1)
    slots[list(latents)] = torch.arange(len(latents))
    none = torch.zeros(0, dtype=torch.int64)
    by_document = by_stretch = _Places(none, none, none, torch.zeros(0))
    for start, code in codes_of(dictionary, store, batch_size=batch_size):
        documents = store.tokens(slice(start, start + len(code))).document_ids
        in_batch, column = ((code.values > 0) & (slots[code.indices] >= 0)).nonzero(as_tuple=True)
        found = _Places(
            slots[code.indices[in_batch, column]],
            in_batch + start,
            documents[in_batch],
            code.values[in_batch, column].float(),
        )
        candidates = by_document + found
        by_document = candidates.strongest(candidates.document, n)
        # A latent may live in few documents: keep strong places of distinct stretches of text as well, to fill up from.
        candidates = by_stretch + found
        by_stretch = candidates.strongest(candidates.row // (window + 1), 2 * n)
    chosen: list[list[tuple[float, int, int]]] = [[] for _ in latents]
    for place in (by_document, by_stretch):
        columns = (place.slot.tolist(), place.row.tolist(), place.document.tolist(), place.value.tolist())
        for slot, row, document, value in zip(*columns, strict=True):
            apart = all(document != other or abs(row - taken) > window for _, taken, other in chosen[slot])
            if len(chosen[slot]) < n and apart:
                chosen[slot].append((-value, row, document))
    return [(slot, row) for slot, places in enumerate(chosen) for _, row, _ in sorted(places)]


def _windows(
    dictionary: Encodes,
    store: StoredActivations,
    places: list[tuple[int, int]],
    latents: Sequence[int],
    window: int,
    tokens_to_strings: Callable[[Int64[Tensor, " t"]], list[str]],
) -> list[tuple[int, Example]]:
    """Read and code the rows around each place, and cut them where the document ends."""
    peaks = torch.tensor([row for _, row in places])
    # One row more on each side says whether the text goes on, be it in the next context of the same document.
    around = peaks[:, None] + torch.arange(-window - 1, window + 2)
    inside = (around >= 0) & (around < len(store))
    read = store.tokens(around.clamp(0, len(store) - 1).flatten())
    shape = around.shape
    documents, positions = read.document_ids.view(shape), read.positions.view(shape)
    middle = slice(window + 1, window + 2)
    distance = torch.arange(-window - 1, window + 2)
    goes_on = inside & (documents == documents[:, middle])
    same = goes_on & (positions - positions[:, middle] == distance)
    rows = around[:, 1:-1][same[:, 1:-1]]
    code = dictionary.encode(store.rows(site_of(dictionary, store), rows).to(dictionary.atoms.device)).to("cpu")
    ids = read.token_ids.view(shape)[:, 1:-1]
    found, start = [], 0
    for i, (slot, _) in enumerate(places):
        kept = same[i, 1:-1]
        stop = start + int(kept.sum())
        part = code[start:stop]
        values = (part.values * (part.indices == latents[slot])).sum(dim=1)
        example = Example(
            tokens=tuple(tokens_to_strings(ids[i][kept])),
            values=tuple(values.tolist()),
            peak=int(kept[:window].sum()),
            document=int(documents[i, window + 1]),
            position=int(positions[i, window + 1]),
            cut_before=bool(goes_on[i, int(kept.nonzero()[0])]),
            cut_after=bool(goes_on[i, int(kept.nonzero()[-1]) + 2]),
        )
        found.append((slot, example))
        start = stop
    return found
