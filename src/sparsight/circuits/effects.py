"""What nodes do to a metric: by changing them one by one, or from gradients along the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.circuits.contrast import Ablation, Contrast, MeanNodes
from sparsight.circuits.effects_record import Effects, SiteEffects
from sparsight.circuits.ends import Ends, ErrorTreatment, mean_nodes
from sparsight.circuits.exact import exact_effects
from sparsight.circuits.field import Field
from sparsight.circuits.jumps import integrate
from sparsight.circuits.metric import Bench, Judge, Metric, Passes
from sparsight.circuits.nodes import AbstractNodes, Placed, nodes_of
from sparsight.circuits.quadrature import Rule, points
from sparsight.evaluation.reading import reported
from sparsight.models import LanguageModel, Site, Tokens

Method = Literal["exact", "attribution", "integrated_gradients"]


def latent_effects(
    lm: LanguageModel,
    dictionary: Placed | Mapping[Site, Placed],
    clean: Tokens,
    corrupted: Tokens | None,
    metric: Metric | Judge,
    *,
    method: str = "integrated_gradients",
    steps: int = 10,
    rule: str = "midpoint",
    jumps: bool = True,
    ablation: str = "paired",
    joint: bool = False,
    error: str = "kept",
    at: Sequence[Site] | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Effects:
    """How much each latent, and what its dictionary leaves out, contributes to a metric of each sequence.

    A node (a latent at a token, or the error there) is changed from its value `a` in the clean run to another, `a'`:

    * `exact` does so, one node at a time: `m(do(a')) - m`. A forward pass for every node that differs.
    * `attribution`: `dm/da · (a' - a)`, the gradient in the clean run. One backward pass for all nodes of all sites.
    * `integrated_gradients`: the gradient averaged over the straight line on which all nodes of the site go from clean
      to changed. The effects of all nodes then add up to what changing all of them does, to the precision of the rule.

    With `error="kept"` all other sites are those of the model, and the metric is a smooth function of the nodes: gates
    of encoders do not matter. With `"held"` (to those of the clean run) or `"dropped"` the dictionaries stand in the
    model at all other sites as well, and what is changed at one acts through the gates of the next ones. There the
    gradient misses what happens when a gate flips. With `jumps` every flip on the way is found and measured, and what
    it does is handed to the nodes that move the gate; between flips a Gauss rule is refined until it accounts for what
    the metric does there.

    Args:
        lm: The model.
        dictionary: One that knows its site, or `{site: dictionary}`; also nodes made by hand (neurons, directions).
        clean: The sequences.
        corrupted: What is changed to, with `paired`: sequences of the same lengths, token by token; with `mean`: any,
            whose counted tokens give the means; with `zero`: None.
        metric: One number for each sequence; a plain function is taken as the judge of logits (`Metric`).
        method: See above.
        steps: Points of the integral. Where jumps are counted, the grid on which flips are looked for at first.
        rule: Where the points are; not used where jumps are counted.
        jumps: Count the flips of gates.
        ablation: What nodes are changed to.
        joint: Change the nodes of all sites together, so that those of later sites do not respond: effects are direct
            ones, and add up over all sites.
        error: What becomes of the errors of other sites.
        at: Sites whose effects are asked for; the dictionaries of others only stand there. All by default.
        batch_size: Sequences in one pass, and those whose nodes are held at once.
        progress: Show a bar on stderr.
    Returns:
        Effects of every site; `.completeness` says how much they leave unaccounted for, `.regime` where gates matter.
    Raises:
        ValueError: a wrong argument, sequences that cannot be paired, a metric that does not give one number for each,
            or a pursuit between nodes and metric where jumps are asked for.
        UndefinedMetric: the metric is NaN or infinite somewhere, or there is no token to take a mean over.
        ModelError: the model has no such site.
    Source:
        Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", 2017; Marks et al., "Sparse feature
        circuits", 2024, for latents and errors as nodes. We depart from the latter by the midpoint rule (theirs is the
        left one), by counting jumps, and by saying what the effects leave out.
    """
    settings = _Settings(_named("method", method, Method), steps, _named("rule", rule, Rule), jumps, joint)
    nodes = nodes_of(lm, dictionary)
    asked = _asked(nodes, at)
    ends = Ends(lm, nodes, _named("ablation", ablation, Ablation), _named("error", error, ErrorTreatment))
    _check_sequences(clean, corrupted, ablation)
    judged = metric if isinstance(metric, Metric) else Metric(metric)
    passes = Passes()
    means: dict[Site, MeanNodes] = {}
    if ablation == "mean" and corrupted is not None:
        means = mean_nodes(ends, corrupted, batch_size, passes)
    parts: list[dict[Site, SiteEffects]] = []
    with reported("effects", len(clean), shown=progress) as advance:
        for first in range(0, len(clean), batch_size):
            rows = slice(first, first + batch_size)
            bench = Bench(lm, judged, clean[rows].to(lm.device), first, batch_size, passes)
            patch = corrupted[rows].to(lm.device) if ablation == "paired" and corrupted is not None else None
            parts.append(_batch_effects(bench, ends, asked, patch, means, settings))
            advance(len(bench.tokens))
    gated = error != "kept" and not joint and len(nodes) > 1
    return Effects(
        sites={site: _joined([part[site] for part in parts]) for site in asked},
        method=settings.describe(gated),
        regime="gated path" if gated else "smooth path",
        passes=passes,
    )


@dataclass(frozen=True)
class _Settings:
    method: Method
    steps: int
    rule: Rule
    jumps: bool
    joint: bool

    def __post_init__(self) -> None:
        points(self.rule, self.steps)  # refuses fewer than one step

    def describe(self, gated: bool) -> str:
        if self.method != "integrated_gradients":
            return self.method
        if gated and self.jumps:
            return f"integrated gradients between flips, jumps counted, grid of {self.steps}"
        return f"integrated gradients, {self.rule} rule, {self.steps} steps"


def _named(name: str, value: str, known: Any) -> Any:
    """The value, if it is one of those known."""
    if value not in get_args(known):
        raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    return value


def _asked(nodes: Mapping[Site, AbstractNodes], at: Sequence[Site] | None) -> list[Site]:
    """The sites whose effects are wanted, in the order of a forward pass."""
    found = list(nodes) if at is None else [site for site in nodes if site in at]
    if not found or len(found) < len(set(nodes if at is None else at)):
        raise ValueError(
            f"no dictionary stands at some of {sorted(map(str, at or ()))}; they are at {sorted(map(str, nodes))}"
        )
    return found


def _check_sequences(clean: Tokens, corrupted: Tokens | None, ablation: str) -> None:
    if (corrupted is None) != (ablation == "zero"):
        needs = "takes no corrupted sequences; pass None" if ablation == "zero" else "needs corrupted sequences"
        raise ValueError(f"ablation={ablation!r} {needs}")
    if len(clean) == 0:
        raise ValueError("expected at least one sequence, got none")
    if ablation != "paired" or corrupted is None:
        return
    if clean.ids.shape != corrupted.ids.shape or not torch.equal(clean.mask, corrupted.mask):
        lengths = [tokens.mask.sum(dim=1).tolist()[:8] for tokens in (clean, corrupted)]
        raise ValueError(
            f"paired sequences must have equal lengths, got {lengths[0]} and {lengths[1]} (the first eight); use "
            "ablation='mean' or 'zero' for sequences that do not correspond token by token"
        )


def _batch_effects(
    bench: Bench,
    ends: Ends,
    asked: list[Site],
    patch: Tokens | None,
    means: Mapping[Site, MeanNodes],
    settings: _Settings,
) -> dict[Site, SiteEffects]:
    """Effects of the nodes of every site for one batch of sequences."""
    by_gradient = settings.method == "attribution" and not settings.joint
    run = ends.clean(bench, probed=by_gradient)
    found_contrasts = ends.contrasts(bench, run, patch, means)
    contrasts = {site: found_contrasts[site] for site in asked}
    ways = {site: contrast.way(ends.nodes[site]) for site, contrast in contrasts.items()}
    starts = {site: contrast.start for site, contrast in contrasts.items()}
    standing = ends.standing(bench, run)
    groups = [list(contrasts)] if settings.joint else [[site] for site in contrasts]
    found: dict[Site, SiteEffects] = {}
    n = len(bench.tokens)
    for group in groups:
        stream = run.stream_before(group) if standing is None else {}
        field = Field(bench, {s: starts[s] for s in group}, {s: ways[s] for s in group}, standing, stream)
        everyone = torch.arange(n)
        total = field.measure(everyone, torch.ones(n, dtype=torch.float64)) - run.metric
        flips = torch.zeros(n, dtype=torch.int64)
        if settings.method == "exact":
            effects = {s: exact_effects(field, s, ends.nodes[s], contrasts[s], run.metric) for s in group}
        else:
            gradients = run.gradients if by_gradient else _mean_gradients(field, settings, n, flips)
            effects = {s: contrasts[s].along(ends.nodes[s], gradients[s]) for s in group}
        for site in group:
            found[site] = _site_effects(ends.nodes[site], contrasts[site], effects[site], total, flips, settings.joint)
    return found


def _mean_gradients(field: Field, settings: _Settings, n: int, flips: Tensor) -> dict[Site, Tensor]:
    """What the change of a node is multiplied with: the mean gradient along the path, jumps included.

    `flips` is filled with the number of flips of each sequence.
    """
    everyone = torch.arange(n)
    if settings.method == "attribution":
        return field.gradients(everyone, torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))
    if not (field.is_gated and settings.jumps):
        alphas, weights = points(settings.rule, settings.steps)
        return field.gradients(everyone.repeat_interleave(len(alphas)), alphas.repeat(n), weights.repeat(n))
    integral = integrate(field, n, settings.steps)
    flips += integral.n_flips
    return integral.gradients


def _site_effects(
    nodes: AbstractNodes,
    contrast: Contrast,
    effects: tuple[Tensor, Tensor, Tensor],
    total: Float[Tensor, " b"],
    flips: Tensor,
    joint: bool,
) -> SiteEffects:
    values, errors, silent = effects
    return SiteEffects(
        kind=nodes.kind,
        n_latents=nodes.n_latents,
        indices=contrast.indices.cpu(),
        values=values.detach().cpu(),
        change=contrast.change.detach().cpu(),
        errors=errors.detach().cpu(),
        silent=silent.detach().cpu(),
        total=total.detach().cpu(),
        n_flips=flips,
        joint=joint,
    )


def _joined(parts: list[SiteEffects]) -> SiteEffects:
    """Batches one below the other, padded with unused slots to one width."""
    width = max(part.indices.shape[2] for part in parts)
    pad = torch.nn.functional.pad
    columns = {
        name: torch.cat([pad(getattr(part, name), (0, width - part.indices.shape[2])) for part in parts])
        for name in ("indices", "values", "change")
    }
    rows = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("errors", "silent", "total", "n_flips")}
    return SiteEffects(kind=parts[0].kind, n_latents=parts[0].n_latents, joint=parts[0].joint, **columns, **rows)
