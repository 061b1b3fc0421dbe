"""Nodes: what an activation is taken apart into, so that each part can be read, held and changed on its own.

A dictionary's latents are the nodes this package is for. Neurons and fixed directions are nodes as well: the baselines
that latents have to beat go through the same code.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary, CrosscoderDictionary
from sparsight.errors import ModelError
from sparsight.models import LanguageModel, Site

# A slot that is fetched costs about as much as this many columns of a plain matrix product.
COLUMNS_PER_SLOT = 4


class AbstractNodes(ABC):
    """A way to write activations as `values atoms + offset + error`.

    Subclasses are final.

    Attributes:
        reads: The site whose activations are coded.
        writes: The site whose activations the values add up to; the same one for all but transcoders.
        atoms: `[n_latents, d_out]`: what one unit of a node adds at `writes`. Not trained here.
        kind: What the nodes are: part of every id.
    """

    reads: Site
    writes: Site
    atoms: Tensor
    kind: ClassVar[str]

    @property
    def n_latents(self) -> int:
        return int(self.atoms.shape[0])

    @property
    def d_out(self) -> int:
        return int(self.atoms.shape[1])

    @property
    @abstractmethod
    def d_in(self) -> int:
        """Width of what is coded."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """Values of the nodes; differentiable in `x`."""

    @abstractmethod
    def offset(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """What is reconstructed when every node is 0."""

    def add_up(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        """`values atoms`, without the offset; differentiable in the values."""
        if code.n_latents <= COLUMNS_PER_SLOT * code.k:
            return code.to_dense() @ self.atoms
        return code.decode(self.atoms)


class DictionaryNodes(AbstractNodes):
    """The latents of a dictionary: what it leaves unexplained is the error.

    A transcoder reads at one site and writes at another; its error is what it leaves of the output. Its skip, where it
    has one, belongs to the offset.
    """

    kind: ClassVar[str] = "latent"

    def __init__(self, dictionary: AbstractDictionary, reads: Site, writes: Site) -> None:
        """Put a dictionary at a site.

        Raises:
            ValueError: it is a crosscoder, whose latents have no one site to stand at.
        """
        if isinstance(dictionary, CrosscoderDictionary):
            raise ValueError(
                "a crosscoder writes at several sites at once and cannot be spliced; use a dictionary of one site"
            )
        self.dictionary, self.reads, self.writes = dictionary, reads, writes
        self.atoms = dictionary.atoms.detach()

    @property
    def d_in(self) -> int:
        return self.dictionary.d_in

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        return self.dictionary.encode(x)

    def offset(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """What the dictionary makes of `x` with every latent silent: `b_dec`, and what passes beside the code."""
        silent = SparseCode(
            torch.zeros(len(x), 0, dtype=torch.int64, device=x.device), x.new_zeros(len(x), 0), self.n_latents
        )
        return self.dictionary.reconstruct(x, silent)


class DirectionNodes(AbstractNodes):
    """Coordinates along given directions: `values = x pinv(directions)`, the error is orthogonal to all of them."""

    kind: ClassVar[str] = "direction"

    def __init__(self, site: Site, directions: Float[Tensor, "m d"]) -> None:
        """Take the rows of `directions` as nodes.

        Raises:
            ValueError: they are linearly dependent, so that coordinates along them are not unique.
        """
        if directions.shape[0] == 0 or int(torch.linalg.matrix_rank(directions)) < directions.shape[0]:
            raise ValueError(f"directions must be linearly independent, got {list(directions.shape)} of lower rank")
        self.reads = self.writes = site
        self.atoms = directions.detach()
        self._read = torch.linalg.pinv(self.atoms)

    @property
    def d_in(self) -> int:
        return self.d_out

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        return _every_node(x @ self._read)

    def offset(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return torch.zeros_like(x)


class NeuronNodes(AbstractNodes):
    """Each coordinate of the activation is a node; nothing is left for the error."""

    kind: ClassVar[str] = "neuron"

    def __init__(self, site: Site, width: int, like: Tensor | None = None) -> None:
        """Take the coordinates of a site as nodes, in the dtype and on the device of `like`."""
        self.reads = self.writes = site
        self.atoms = torch.eye(width) if like is None else torch.eye(width, dtype=like.dtype, device=like.device)

    @property
    def d_in(self) -> int:
        return self.d_out

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        return _every_node(x)

    def offset(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return torch.zeros_like(x)

    def add_up(self, code: SparseCode) -> Float[Tensor, "n d_out"]:
        return code.to_dense()


def _every_node(values: Float[Tensor, "n m"]) -> SparseCode:
    indices = torch.arange(values.shape[1], device=values.device).expand(values.shape)
    return SparseCode(indices, values, values.shape[1])


Placed = AbstractDictionary | AbstractNodes
"""A dictionary, or nodes made by hand."""


def nodes_of(lm: LanguageModel, dictionaries: Placed | Mapping[Site, Placed]) -> dict[Site, AbstractNodes]:
    """Dictionaries as nodes of a model, by the site where they write, in the order of a forward pass.

    Args:
        lm: The model.
        dictionaries: One that knows its site, or one for each site. A transcoder stands under the site it writes at,
            and knows the site it reads.
    Raises:
        ValueError: a dictionary does not know its site, knows another one, or has another width than the site.
        ModelError: the model has no such site.
    """
    named: dict[Site, Placed] = {}
    if isinstance(dictionaries, Mapping):
        named.update(dictionaries)
    else:
        named[_site_of(dictionaries)] = dictionaries
    if not named:
        raise ValueError("expected a dictionary at one site at least, got none")
    found = {site: _at(lm, site, placed) for site, placed in named.items()}
    return dict(sorted(found.items()))


def _site_of(placed: Placed) -> Site:
    if isinstance(placed, AbstractNodes):
        return placed.writes
    site = placed.places[-1].site if placed.places else placed.site
    if site is None:
        raise ValueError("the dictionary does not know its site; give {site: dictionary}")
    return site


def _at(lm: LanguageModel, site: Site, placed: Placed) -> AbstractNodes:
    nodes = placed if isinstance(placed, AbstractNodes) else _dictionary_at(site, placed)
    if nodes.writes != site:
        raise ValueError(f"nodes that write at {nodes.writes} cannot stand at {site}")
    known = lm.sites()
    for where, width in ((nodes.reads, nodes.d_in), (nodes.writes, nodes.d_out)):
        if where not in known:
            raise ModelError(f"{lm.name} has no site {where}, so nothing can stand there")
        if lm.width(where) != width:
            raise ValueError(
                f"{lm.name} has width {lm.width(where)} at {where}, got {nodes.kind}s of width {width}; "
                "use a dictionary that was trained there"
            )
    if nodes.reads > nodes.writes:
        raise ValueError(f"{nodes.writes} is computed before {nodes.reads}, so nothing read there can be written there")
    return nodes


def _dictionary_at(site: Site, dictionary: AbstractDictionary) -> AbstractNodes:
    if dictionary.places and not isinstance(dictionary, CrosscoderDictionary):
        reads, writes = (place.site for place in dictionary.places)
        if reads is None:
            raise ValueError("the transcoder does not know the site it reads; set its places, or use DictionaryNodes")
        return DictionaryNodes(dictionary, reads, site if writes is None else writes)
    if dictionary.site is not None and dictionary.site != site:
        raise ValueError(f"the dictionary was trained at {dictionary.site} and cannot stand at {site}")
    return DictionaryNodes(dictionary, site, site)
