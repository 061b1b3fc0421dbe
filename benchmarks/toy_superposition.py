"""The two drawings of docs/toy-superposition.md: where a second feature enters one dimension, and who shares how much.

    python benchmarks/toy_superposition.py --figure docs/images/toy-superposition.png

Two features in one dimension: the best weights by search beside trained ones and the boundary of the closed forms.
Twenty features in five dimensions, from always present to rare. Two minutes on one core.
"""

import argparse
from pathlib import Path

import torch

from sparsight.studies.drawing import draw
from sparsight.studies.record import Line, Panel
from sparsight.theory.superposition import (
    ToyInputs,
    best_two_in_one,
    dimensionality,
    expected_loss,
    groups,
    superposition_below,
    train_toy,
)

IMPORTANCES = (0.1, 0.2, 0.5, 1.0)
COPIES = 8


def second_weight() -> Panel:
    """|w_2| of the best weights, and of the best of some trained copies, over density."""
    densities = [round(0.04 * i, 2) for i in range(1, 18)]
    lines = []
    for r in IMPORTANCES:
        best = [best_two_in_one(p, r, starts=4) for p in densities]
        model = train_toy(
            ToyInputs(2, tuple(p for p in densities for _ in range(COPIES))),
            1,
            torch.tensor([[1.0, r]]),
            steps=3000,
            batch=512,
            lr=1e-2,
        )
        trained = []
        for i, p in enumerate(densities):
            ends = [
                (expected_loss((w[0], w[1]), (b[0], b[1]), p, r), w)
                for W, b in zip(model.W[i * COPIES :][:COPIES], model.b[i * COPIES :][:COPIES].tolist(), strict=True)
                for w in [W[0].tolist()]
            ]
            loss, w = min(ends)
            trained.append(min(abs(w[0]), abs(w[1])))
            print(f"r {r} p {p:.2f}: best {best[i].loss:.5f}, of trained {loss:.5f}")
        print(f"r {r}: boundary of the closed forms {superposition_below(r):.3f}")
        exact = [min(abs(each.w[0]), abs(each.w[1])) for each in best]
        lines.append(Line(name=f"importance {r:g}", x=list(densities), y=exact))
        lines.append(Line(name="", x=list(densities), y=trained, style="points"))
    return Panel(title="Two in one dimension", x_label="density", y_label="smaller weight", lines=lines)


def shares() -> Panel:
    """Dimensions for each represented feature, twenty in five."""
    densities = (1.0, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
    model = train_toy(ToyInputs(20, densities), 5, torch.ones(1, 20), steps=6000, batch=1024, lr=3e-3)
    lines = []
    points = [(1 / p, float(d)) for p, W in zip(densities, model.W, strict=True) for d in dimensionality(W)]
    lines.append(Line(name="features", x=[x for x, _ in points], y=[y for _, y in points], style="points"))
    for name, share in (("opposites", 1 / 2), ("all twenty alike", 5 / 20)):
        lines.append(Line(name=name, x=[1.0, 100.0], y=[share, share], style="dashed"))
    for p, W in zip(densities, model.W, strict=True):
        found = groups(W)
        sizes = [(len(group.features), group.dimensions) for group in found]
        print(f"p {p}: represented {sum(n for n, _ in sizes)}, features and dimensions of groups {sizes}")
    return Panel(title="Twenty in five", x_label="1 / density", y_label="dimensions", x_log=True, lines=lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, required=True)
    panels = [second_weight(), shares()]
    draw(panels, "Toy superposition").savefig(parser.parse_args().figure, dpi=110, metadata={"Software": None})
