"""Taking nodes away: some of them, or all but some, at every counted token of a pass."""

from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.shift.classifier import Chosen, Intervention
from sparsight.codes import SparseCode
from sparsight.models import Edit, Site, Tokens


class Removal:
    """An edit that takes nodes' contributions out of activations at counted tokens and leaves all else as it is."""

    def __init__(self, nodes: AbstractNodes, latents: Sequence[int], counted: Bool[Tensor, "b t"]) -> None:
        self._nodes, self._counted = nodes, counted
        self._latents = torch.tensor(list(latents), dtype=torch.int64)
        self._columns = torch.full(
            (nodes.n_latents,), len(latents), dtype=torch.int64
        )  # the last one is for the others
        self._columns[self._latents] = torch.arange(len(latents))

    def __call__(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        counted = self._counted.to(x.device)
        code = self._nodes.encode(x[counted])
        columns = self._columns.to(x.device)[code.indices]
        gone = code.values.new_zeros(len(code), len(self._latents) + 1).scatter_add(1, columns, code.values)
        edited = x.clone()
        edited[counted] = x[counted] - (gone[:, :-1] @ self._nodes.atoms[self._latents.to(x.device)]).to(x.dtype)
        return edited


def ablation(nodes: Mapping[Site, AbstractNodes], chosen: Chosen) -> Intervention:
    """Set nodes to 0 at every counted token, errors kept; later sites are coded from what earlier ones leave.

    Raises:
        ValueError: a site has no nodes, or nodes that read at another site.
    """
    used = {site: latents for site, latents in chosen.items() if len(latents)}
    _check_places(nodes, used, used)

    def intervene(tokens: Tokens) -> dict[Site, Edit]:
        return {site: Removal(nodes[site], latents, tokens.counted) for site, latents in used.items()}

    return intervene


class Reduction:
    """An edit that leaves of activations at counted tokens what some nodes account for: no other node and no error."""

    def __init__(self, nodes: AbstractNodes, latents: Sequence[int], counted: Bool[Tensor, "b t"]) -> None:
        self._nodes, self._counted = nodes, counted
        self._kept = torch.zeros(nodes.n_latents)
        self._kept[list(latents)] = 1

    def __call__(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        counted = self._counted.to(x.device)
        rows = x[counted]
        code = self._nodes.encode(rows)
        kept = SparseCode(code.indices, code.values * self._kept.to(code.values)[code.indices], code.n_latents)
        edited = x.clone()
        edited[counted] = (self._nodes.add_up(kept) + self._nodes.offset(rows)).to(x.dtype)
        return edited


def keeping(nodes: Mapping[Site, AbstractNodes], chosen: Chosen) -> Intervention:
    """Leave only some nodes at every counted token: all others are set to 0 and errors dropped, at every site.

    Raises:
        ValueError: a site has no nodes, or nodes that read at another site.
    """
    _check_places(nodes, chosen, nodes)

    def intervene(tokens: Tokens) -> dict[Site, Edit]:
        return {site: Reduction(at, chosen.get(site, ()), tokens.counted) for site, at in nodes.items()}

    return intervene


def _check_places(nodes: Mapping[Site, AbstractNodes], chosen: Chosen, edited: Collection[Site]) -> None:
    if missing := sorted(set(chosen) - set(nodes)):
        raise ValueError(f"nothing stands at {missing[0]} to be ablated; give its dictionary")
    if elsewhere := [site for site in edited if nodes[site].reads != site]:
        raise ValueError(f"nodes at {elsewhere[0]} read elsewhere; SHIFT takes nodes of one site, no transcoders")
