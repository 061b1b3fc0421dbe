"""Does what latents leave unexplained shrink as dictionaries grow?

If every computation ran through directions that a wide enough dictionary holds, the errors' part in a behaviour would
fall towards 0 with width. A curve that levels off above 0 speaks against that strong form of the linear representation
hypothesis, or for dictionaries that are not good enough: the curve alone cannot tell the two apart.
"""

from collections.abc import Mapping
from typing import Literal

from sparsight.circuits.discovery.circuit import Circuit
from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.discovery.find import find_circuit
from sparsight.circuits.discovery.measure import Bench, Share, bench_ends, share
from sparsight.circuits.nodes import Placed
from sparsight.evaluation.frozen_record import Record
from sparsight.models import LanguageModel, Site


class WidthPoint(Record):
    """One width.

    Attributes:
        width: Latents of a dictionary.
        error_share: The errors' part of the summed absolute effects of all nodes of all sites, on examples to find on.
        without_errors: Faithfulness with every latent kept and every error ablated, on other examples.
    """

    width: int
    error_share: float
    without_errors: Share


def error_share_curve(
    lm: LanguageModel,
    by_width: Mapping[int, Placed | Mapping[Site, Placed]],
    found_on: Examples,
    measured_on: Examples,
    *,
    steps: int = 4,
    ablation: Literal["paired", "mean", "zero"] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> list[WidthPoint]:
    """The errors' part in a behaviour, for dictionaries of several widths at the same sites.

    Args:
        lm: The model.
        by_width: Dictionaries by width.
        found_on, measured_on: Examples for effects, and others for faithfulness.
        steps, ablation, batch_size: As in `find_circuit`.
        seed: Of the bootstrap.
    Raises:
        ValueError, UndefinedMetric: as `find_circuit`.
    """
    points = []
    for width, dictionaries in sorted(by_width.items()):
        found = find_circuit(
            lm, dictionaries, found_on, node_threshold=0, edges=False, steps=steps, ablation=ablation,
            batch_size=batch_size,
        )  # fmt: skip
        bench = Bench.of(found, lm, dictionaries, measured_on, batch_size=batch_size)
        kept = {site: values.new_ones(values.shape).bool() for site, values in found.effects.items()}
        for mask in kept.values():
            mask[:, -1] = False
        rest = share(bench, kept, seed=seed, ends=bench_ends(bench))
        points.append(WidthPoint(width=width, error_share=_whole_share(found), without_errors=rest))
    return points


def _whole_share(circuit: Circuit) -> float:
    errors = sum(float(values[:, -1].abs().sum()) for values in circuit.effects.values())
    return errors / sum(float(values.abs().sum()) for values in circuit.effects.values())
