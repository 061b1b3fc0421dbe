"""Reading the nodes of every site in the clean run, and what they are changed to."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.circuits.contrast import Ablation, Contrast, MeanNodes, paired, to_mean, to_zero
from sparsight.circuits.field import Standing
from sparsight.circuits.metric import Bench, Passes
from sparsight.circuits.nodes import AbstractNodes
from sparsight.circuits.splice import NodeValues, Splice
from sparsight.errors import UndefinedMetric
from sparsight.models import Edit, LanguageModel, Site, Tokens

ErrorTreatment = Literal["kept", "held", "dropped"]
"""Of dictionaries at other sites: `kept`: they are not there; `held`: their errors are those of the clean run."""


@dataclass(frozen=True)
class Read:
    """What one run had at every site.

    Attributes:
        nodes: Nodes, all 0 at padding.
        offset: What they are added to.
        written: What stands there.
    """

    nodes: dict[Site, NodeValues]
    offset: dict[Site, Tensor]
    written: dict[Site, Tensor]


@dataclass(frozen=True)
class CleanRun:
    """The clean run of a batch.

    Attributes:
        read: Nodes of every site, and what stands there.
        metric: Of each sequence.
        gradients: Of the metric by what stands at each site, where asked for.
        streams: What comes into the blocks of sites within a block.
    """

    read: "Read"
    metric: Float[Tensor, " b"]
    gradients: dict[Site, Tensor]
    streams: dict[Site, Tensor]

    def stream_before(self, moved: Collection[Site]) -> dict[Site, Tensor]:
        """The residual stream that comes into the first moved site's block, where it is known and not itself moved."""
        into = _into_block(min(moved))
        known = self.streams if into in self.streams else self.read.written
        return {into: known[into]} if into is not None and into not in moved and into in known else {}


@dataclass(frozen=True)
class Ends:
    """Where interventions begin and where they end.

    Attributes:
        lm: The model.
        nodes: By site.
        ablation: What nodes are changed to.
        error: What becomes of the errors of other sites.
    """

    lm: LanguageModel
    nodes: dict[Site, AbstractNodes]
    ablation: Ablation
    error: ErrorTreatment

    def splice(self, tokens: Tokens) -> Splice:
        """The dictionaries in the run they are read in."""
        if self.error == "dropped":
            return Splice(self.nodes, where=tokens.counted, error="dropped")
        if self.error == "held":
            return Splice(self.nodes, where=tokens.counted, error="detached")
        return Splice(self.nodes, where=tokens.counted, gradient="passed")

    def clean(self, bench: Bench, *, probed: bool) -> CleanRun:
        """One pass that reads nodes and metric; with probes also gradients, in one backward pass for all sites."""
        splice, probes, streams = self.splice(bench.tokens), dict[Site, Tensor](), dict[Site, Tensor]()
        wanted = {_into_block(site) for site in self.nodes} - set(self.nodes)
        edits = splice.edits({site: partial(_keep, streams, site) for site in self.lm.sites() if site in wanted})
        if probed:
            edits |= {site: partial(_probe, probes, site, edits[site]) for site in self.nodes}
        with torch.set_grad_enabled(probed):
            metric = bench.measure(torch.arange(len(bench.tokens)), edits)
        gradients: dict[Site, Tensor] = {}
        if probed:
            found = bench.gradients(metric, [probes[site] for site in self.nodes])
            gradients = {site: g.to(self.nodes[site].atoms) for site, g in zip(self.nodes, found, strict=True)}
        return CleanRun(_read(splice, bench.tokens), metric.detach(), gradients, streams)

    def changed(self, tokens: Tokens, passes: Passes) -> Read:
        """Another run, which stops at the last site."""
        splice = self.splice(tokens)
        passes.forward += len(tokens)
        with torch.no_grad():
            self.lm.activations(tokens, list(self.nodes), edits=splice.edits())
        return _read(splice, tokens)

    def contrasts(
        self, bench: Bench, run: CleanRun, patch: Tokens | None, means: Mapping[Site, MeanNodes]
    ) -> dict[Site, Contrast]:
        """What changes at every site."""
        where, clean = bench.tokens.counted, run.read
        if patch is not None:
            other = self.changed(patch, bench.passes)
            return {
                site: paired(
                    nodes.n_latents,
                    clean.nodes[site],
                    other.nodes[site],
                    other.offset[site] - clean.offset[site],
                    clean.written[site],
                )
                for site, nodes in self.nodes.items()
            }
        if self.ablation == "zero":
            return {site: to_zero(clean.nodes[site], clean.written[site], where) for site in self.nodes}
        return {
            site: to_mean(nodes, means[site], clean.nodes[site], clean.written[site], where)
            for site, nodes in self.nodes.items()
        }

    def standing(self, bench: Bench, run: CleanRun) -> Standing | None:
        """What stands in the model while nodes are changed. Sites are left to the fields that change them."""
        if self.error == "kept":
            return None
        errors = None if self.error == "dropped" else {site: at.error for site, at in run.read.nodes.items()}
        return Standing(self.nodes, errors, bench.tokens.counted)


def _into_block(site: Site) -> Site | None:
    """What comes into the block that a site is in; None where the site itself is what comes in or out."""
    within = site.layer is not None and site.kind not in ("resid_pre", "resid_post")
    return Site(site.layer, "resid_pre") if within else None


def _keep(streams: dict[Site, Tensor], site: Site, x: Tensor) -> Tensor:
    streams[site] = x.detach()
    return x


def _probe(probes: dict[Site, Tensor], site: Site, edit: Edit, x: Tensor) -> Tensor:
    written = edit(x)
    probes[site] = torch.zeros_like(written, requires_grad=True)
    return written + probes[site]


def _read(splice: Splice, tokens: Tokens) -> Read:
    real = tokens.mask.unsqueeze(-1)  # what the model makes of padding is nobody's node
    nodes = {
        site: NodeValues(at.indices, at.values.detach() * real, at.error.detach() * real)
        for site, at in splice.placed.items()
    }
    offset = {site: at.detach() * real for site, at in splice.offset.items()}
    written = {site: x.detach().to(splice.nodes[site].atoms.dtype) for site, x in splice.written.items()}
    return Read(nodes, offset, written)


def mean_nodes(ends: Ends, tokens: Tokens, batch_size: int, passes: Passes) -> dict[Site, MeanNodes]:
    """Means over the counted tokens of some sequences.

    Raises:
        UndefinedMetric: there are none.
    """
    counted = int(tokens.counted.sum())
    if counted == 0:
        raise UndefinedMetric("the mean of the nodes is undefined: the corrupted sequences have no counted token")
    sums: dict[Site, tuple[Tensor, Tensor]] = {}
    for site, nodes in ends.nodes.items():
        values, error = nodes.atoms.new_zeros(nodes.n_latents), nodes.atoms.new_zeros(nodes.d_out)
        sums[site] = (values.double(), error.double())
    for first in range(0, len(tokens), batch_size):
        batch = tokens[first : first + batch_size].to(ends.lm.device)
        for site, at in ends.changed(batch, passes).nodes.items():
            values, errors = sums[site]
            values.index_add_(0, at.indices.flatten(), at.values.double().flatten())
            errors += (at.error * batch.counted.unsqueeze(-1)).double().sum(dim=(0, 1))
    like = {site: nodes.atoms for site, nodes in ends.nodes.items()}
    return {
        site: MeanNodes((values / counted).to(like[site]), (errors / counted).to(like[site]))
        for site, (values, errors) in sums.items()
    }
