"""Dictionaries whose gates are smooth: for asking what gradients make of gates, not for use."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.circuits.nodes import AbstractNodes, DictionaryNodes
from sparsight.codes import SparseCode
from sparsight.dictionaries import GatedDictionary, JumpReLUDictionary, ReLUDictionary, TopKDictionary


class SmoothedNodes(AbstractNodes):
    """A dictionary with `sigmoid(z / width)` in the place of the step at the boundary `z = 0` of each gate.

    For TopK the boundary lies half-way between the k-th and the next largest pre-activation. As the width goes to 0
    codes become those of the dictionary; gradients do not, where a gate is nearer than that to its boundary.
    """

    kind: ClassVar[str] = "latent"

    def __init__(self, nodes: AbstractNodes, width: float) -> None:
        """Smooth the gates of a dictionary.

        Args:
            nodes: A ReLU, Gated, JumpReLU or TopK dictionary at its site.
            width: In units of the pre-activations.
        Raises:
            ValueError: the width is not positive, or the dictionary is of another kind.
        """
        if width <= 0:
            raise ValueError(f"width must be positive, got {width}")
        known = (ReLUDictionary, GatedDictionary, JumpReLUDictionary, TopKDictionary)
        if not isinstance(nodes, DictionaryNodes) or not isinstance(nodes.dictionary, known):
            what = nodes.dictionary.config.architecture if isinstance(nodes, DictionaryNodes) else nodes.kind
            raise ValueError(f"only gates of ReLU, Gated, JumpReLU and TopK dictionaries can be smoothed, got {what}")
        self._nodes, self._dictionary, self.width = nodes, nodes.dictionary, width
        self.reads, self.writes, self.atoms = nodes.reads, nodes.writes, nodes.atoms

    @property
    def d_in(self) -> int:
        return self._nodes.d_in

    def encode(self, x: Float[Tensor, "n d_in"]) -> SparseCode:
        """Every latent has a value, most of them next to 0: memory `n * n_latents`."""
        values, margin = self._values_and_margin(x)
        values = values * torch.sigmoid(margin / self.width)
        return SparseCode(torch.arange(self.n_latents, device=x.device).expand(values.shape), values, self.n_latents)

    def offset(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        return self._nodes.offset(x)

    def _values_and_margin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dictionary = self._dictionary
        if isinstance(dictionary, GatedDictionary):
            gate, values, _ = dictionary.paths(x)
            return values, gate
        if isinstance(dictionary, ReLUDictionary):
            weights, offset = dictionary.scaled_encoder
            pre = (x - dictionary.b_dec) @ weights + offset
            return pre, pre
        assert isinstance(dictionary, JumpReLUDictionary | TopKDictionary)
        pre = (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
        if isinstance(dictionary, JumpReLUDictionary):
            return pre, pre - dictionary.threshold
        k = dictionary.config.k
        if k == dictionary.n_latents:
            return pre.relu(), pre
        largest = pre.topk(k + 1, dim=1).values
        return pre.relu(), pre - largest[:, k - 1 :].mean(dim=1, keepdim=True)
