"""Setting latents of a dictionary to values, with all that the dictionary does not explain left as it is."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError
from sparsight.evaluation.reading import same_model
from sparsight.intervention.edits import Edits, everywhere
from sparsight.intervention.positions import Where, checked_where
from sparsight.models import LanguageModel, Site

Amount = float | int


def clamp(
    dictionary: AbstractDictionary,
    latents: int | Sequence[int],
    to: Amount | None = None,
    *,
    scale: Amount | None = None,
    add: Amount | None = None,
    at_least: Amount | None = None,
    at_most: Amount | None = None,
    only_where: int | None = None,
    site: Site | str | None = None,
    where: Where = None,
    lm: LanguageModel | None = None,
) -> Edits:
    """`x + sum_j (c_j - f_j(x)) d_j`: latents take new values `c`, the reconstruction's error stays as it was.

    The same as decoding the code with `f_j = c_j` and adding the error, without the way through the decoder: a latent
    set to the value it has changes no bit. `c` is one of: `to`; `scale * f`; `f + add`; `f` limited to between
    `at_least` and `at_most`.

    Args:
        dictionary: Of one site, from `train` or `load_dictionary`: it takes raw activations.
        latents: One or several, different ones.
        to: The value, in the units of the activations; 0 silences the latent.
        scale: Factor on the value it has.
        add: What is added to it.
        at_least: Smaller values are raised to this.
        at_most: Larger values are lowered to this.
        only_where: A latent that must be active for a token to be edited.
        site: Where; the dictionary's own site when None.
        where: Positions; all when None.
        lm: If given, it is checked that the dictionary was made for it.
    Raises:
        ValueError: not exactly one way of changing was asked for, a latent does not exist, or no site is known.
        DataError: the dictionary reads or writes elsewhere than at one site, or is of another model.
    """
    chosen = [latents] if isinstance(latents, int) else list(latents)
    _check(dictionary, chosen, only_where, to=to, scale=scale, add=add, limits=(at_least, at_most))
    place = _place(dictionary, site, lm)
    low, high = (None if end is None else float(end) for end in (at_least, at_most))

    def wanted(f: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        if to is not None:
            return torch.full_like(f, to)
        if scale is not None:
            return f * scale
        return f + add if add is not None else f.clamp(low, high)

    def change(x: Float[Tensor, "b t d"], _: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        rows = x.flatten(0, 1)
        code = dictionary.encode(rows.to(dictionary.atoms))
        now = latent_values(code, chosen)
        off = wanted(now) - now
        if only_where is not None:
            off = off * (latent_values(code, [only_where]) > 0)
        moved = (off @ dictionary.atoms[chosen]).to(x.dtype)
        return x + moved.view_as(x)

    return everywhere(change, [place], checked_where(where), f"clamping latents {chosen}")


def latent_values(code: SparseCode, latents: Sequence[int]) -> Float[Tensor, "n m"]:
    """The values of some latents in every row, without a column for each latent of the dictionary."""
    columns = [(code.values * (code.indices == latent)).sum(dim=1) for latent in latents]
    return torch.stack(columns, dim=1)


def _check(
    dictionary: AbstractDictionary,
    chosen: list[int],
    only_where: int | None,
    *,
    to: Amount | None,
    scale: Amount | None,
    add: Amount | None,
    limits: tuple[Amount | None, Amount | None],
) -> None:
    ways = [to is not None, scale is not None, add is not None, limits != (None, None)]
    if sum(ways) != 1:
        raise ValueError(
            f"say in one way what becomes of the latents (to, scale, add, or at_least and at_most), got {sum(ways)}"
        )
    amounts = [a for a in (to, scale, add, *limits) if a is not None]
    dtype = dictionary.atoms.dtype
    if not all(abs(a) <= torch.finfo(dtype).max for a in amounts):
        raise ValueError(f"values of latents must be finite in {dtype}, got {amounts}")
    if None not in limits and limits[0] > limits[1]:  # type: ignore[operator]  # neither is None
        raise ValueError(f"at_least must not exceed at_most, got {limits[0]} and {limits[1]}")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"name different latents, one at least, got {chosen}")
    named = chosen if only_where is None else [*chosen, only_where]
    if min(named) < 0 or max(named) >= dictionary.n_latents:
        raise ValueError(f"latents must be in [0, {dictionary.n_latents}), got {named}")


def _place(dictionary: AbstractDictionary, site: Site | str | None, lm: LanguageModel | None) -> Site:
    if dictionary.places or dictionary.d_in != dictionary.d_out:
        raise DataError("latents are clamped with a dictionary that reads and writes one site; this one does not")
    if site is None and dictionary.site is None:
        raise ValueError("the dictionary does not name its site; pass site=, such as '2.resid_post'")
    place = Site.parse(site) if site is not None else dictionary.site
    assert place is not None
    if lm is not None:
        check_made_for(dictionary, lm, place)
    return place


def check_made_for(dictionary: AbstractDictionary, lm: LanguageModel, site: Site) -> None:
    """Refuse a dictionary whose atoms are no directions of a model's site.

    Raises:
        DataError: it is of another model.
        ValueError: its atoms have another width.
    """
    if dictionary.model is not None and not same_model(dictionary.model, lm.name):
        raise DataError(f"the dictionary was made for model {dictionary.model}, got {lm.name}; load its own")
    if (width := int(dictionary.atoms.shape[1])) != lm.width(site):
        raise ValueError(f"the dictionary has width {width}, activations at {site} have {lm.width(site)}")
