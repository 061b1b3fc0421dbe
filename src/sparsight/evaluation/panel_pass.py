"""The panel that says where shrinkage is, over some rows of an evaluation."""

import torch
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation.coders import Code
from sparsight.evaluation.shrinkage_panel import SAMPLE_TOKENS, PanelSums, ranges
from sparsight.evaluation.shrinkage_panel_record import ShrinkagePanel
from sparsight.evaluation.sides import Reading


@torch.no_grad()
def shrinkage_panel(
    dictionary: AbstractDictionary, reading: Reading, code: Code, blocks: list[slice], device: torch.device
) -> ShrinkagePanel:
    """The panel over some rows: its ranges from rows spread over them, then its sums from all."""

    def coded(block: slice) -> tuple[Tensor, SparseCode]:
        x, y = reading.rows(block, device)
        z = code(x)
        return y - (dictionary.reconstruct(x, z) - z.decode(dictionary.atoms)), z

    few = blocks[:: max(1, sum(b.stop - b.start for b in blocks) // SAMPLE_TOKENS)]
    targets, codes = zip(*(coded(block) for block in few), strict=True)
    sums = PanelSums(dictionary.atoms, *ranges(torch.cat(targets), SparseCode.cat(codes)))
    for block in blocks:
        sums.add(*coded(block), reading.part.tokens(block).positions)
    return sums.panel
