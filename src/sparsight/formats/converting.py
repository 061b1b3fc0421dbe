"""From one format to another, with the proof that both code alike."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import FormatError
from sparsight.formats.foreign import FORMATS, format_of, load_dictionary, write_dictionary_as

# Differences in parts of the largest value. Float32 sums over a few thousand numbers stay below.
TOLERANCE = 1e-4
# Of the rows, at most this share may differ more: where the k-th and the next latent are equal up to rounding, either
# may be taken.
TIED = 0.01
POLICIES = ("prepend_bos", "context_size")


@dataclass(frozen=True)
class Conversion:
    """What came of a conversion.

    Attributes:
        source, target: Formats.
        architecture: Before and after.
        n_rows: Activations that both were compared on.
        l0: Mean number of active latents on them.
        codes: Largest difference of a value, in parts of the largest value.
        reconstructions: Largest difference of a reconstruction, in parts of its largest number.
        n_tied: Rows that differ by more than rounding, which choices between equal latents may do.
        lost: What the target does not hold.
    """

    source: str
    target: str
    architecture: tuple[str, str]
    n_rows: int
    l0: float
    codes: float
    reconstructions: float
    n_tied: int
    lost: tuple[str, ...]

    def to_text(self) -> str:
        """Lines for people."""
        lines = [
            f"{self.source} -> {self.target}: {self.architecture[0]}, read back as {self.architecture[1]}",
            f"checked on {self.n_rows} activations, {self.l0:.1f} latents active on average",
            f"max|difference| of codes            {self.codes:.1e} of the largest value",
            f"max|difference| of reconstructions  {self.reconstructions:.1e} of the largest number",
        ]
        if self.n_tied:
            lines.append(f"{self.n_tied} rows differ by a choice between latents that are equal up to rounding")
        return "\n".join([*lines, *(f"not kept: {what}" for what in self.lost)])

    def to_record(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def convert(
    source: str | Path,
    out: str | Path,
    name: str,
    *,
    x: Float[Tensor, "n d_in"] | None = None,
    n_rows: int = 512,
    seed: int = 0,
) -> Conversion:
    """Write a dictionary in another format, read it back, and compare codes and reconstructions.

    Args:
        source: What `load_dictionary` takes.
        out: Folder to write.
        name: One of `FORMATS`.
        x: Raw activations to compare on. Default: random ones about `b_dec`, long enough that latents are active.
        n_rows: Number of random ones.
        seed: Of these.
    Raises:
        ValueError: there is no such format, it is only read, or activations do not fit.
        FormatError: the source cannot be read, or the format cannot hold it, or what was written codes otherwise, or
            another format's dictionary is at `out`.
    """
    dictionary = load_dictionary(source)
    if x is not None and x.shape[1] != dictionary.d_in:
        raise ValueError(f"activations must have the dictionary's width {dictionary.d_in}, got {x.shape[1]}")
    there = format_of(Path(out))
    if there is not None and there.name != name:
        raise FormatError(f"{out} holds a dictionary of format {there.name}; give another folder")
    write_dictionary_as(dictionary, out, name)
    again = FORMATS[name].read(Path(out))
    rows = random_activations(dictionary, n_rows, seed) if x is None else x
    l0, codes, reconstructions, n_tied = _compare(dictionary, again, rows)
    found = format_of(Path(source))
    conversion = Conversion(
        source=dictionary.provenance.get("imported_from", {}).get("format", "sparsight")
        if found is None
        else found.name,
        target=name,
        architecture=(dictionary.config.architecture, again.config.architecture),
        lost=_lost(dictionary, again),
        n_rows=len(rows),
        l0=l0,
        codes=codes,
        reconstructions=reconstructions,
        n_tied=n_tied,
    )
    if conversion.n_tied > TIED * len(rows) or (conversion.n_tied == 0 and conversion.reconstructions > TOLERANCE):
        raise FormatError(
            f"{out}: what was written codes otherwise: {conversion.n_tied} of {len(rows)} rows differ, codes by up to "
            f"{conversion.codes:.1e}, reconstructions by up to {conversion.reconstructions:.1e} of the largest; do not "
            "use it"
        )
    return conversion


@torch.no_grad()
def random_activations(dictionary: AbstractDictionary, n: int, seed: int) -> Float[Tensor, "n d_in"]:
    """Gaussian rows about the dictionary's offset, of the first length in powers of 2 that activates a latent in most.

    Raises:
        FormatError: no length does.
    """
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, dictionary.d_in, generator=g)
    centre = dict(dictionary.named_parameters()).get("b_in", dictionary.b_dec)
    for exponent in range(-6, 24):
        x = centre + noise * 2.0**exponent
        active = dictionary.encode(x).values > 0
        if float(active.any(dim=1).float().mean()) > 0.9:
            return x
    raise FormatError("no random activation activates a latent; give stored ones (--activations)")


@torch.no_grad()
def _compare(
    one: AbstractDictionary, other: AbstractDictionary, x: Float[Tensor, "n d_in"]
) -> tuple[float, float, float, int]:
    """Mean number of active latents, largest differences of codes and of reconstructions, rows that differ."""
    apart, far, largest, longest, active = list[Tensor](), 0.0, 0.0, 0.0, 0
    for rows in torch.split(x, 64):
        z, z_again, y, y_again = one.encode_dense(rows), other.encode_dense(rows), one(rows), other(rows)
        largest, longest = max(largest, float(z.max())), max(longest, float(y.abs().max()))
        apart.append((z - z_again).abs().amax(dim=1))
        far = max(far, float((y - y_again).abs().max()))
        active += int((z > 0).sum())
    if largest == 0:
        raise FormatError("no latent is active on these activations, so nothing was checked; give others")
    differences = torch.cat(apart) / largest
    n_tied = int((differences > TOLERANCE).sum())
    return active / len(x), float(differences.max()), far / max(longest, torch.finfo(torch.float32).tiny), n_tied


def _lost(one: AbstractDictionary, other: AbstractDictionary) -> tuple[str, ...]:
    """What the other does not say of what the one says."""
    pairs: list[tuple[str, object, object]] = [("model", one.model, other.model)]
    if one.places:
        after = [place.site for place in other.places] or [None] * len(one.places)
        for place, site, side in zip(one.places, after, ("input", "output"), strict=False):
            pairs.append((f"site of the {side}", place.site, site))
    else:
        pairs.append(("site", one.site, other.site))
    pairs.extend((name, one.provenance.get(name), other.provenance.get(name)) for name in POLICIES)
    if one.normalization is not None:
        pairs.append(("record of the normalisation (the weights have it folded in)", "scale", other.normalization))
    return tuple(f"{name} {before}" for name, before, now in pairs if before is not None and before != now)
