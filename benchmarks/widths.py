"""Does what latents leave to errors shrink as dictionaries grow? Trained widths, the organism's behaviours.

    python benchmarks/widths.py --out runs/widths --figure docs/images/widths.png

Trains TopK dictionaries of 64 to 2,048 latents (16 active, 200,000 activations) at three sites, and takes for each
behaviour the errors' share of all effects, and the faithfulness with every latent kept and every error ablated. A few
minutes on one free core; what is finished is kept in the folder and found again.
"""

import argparse
import json
from itertools import count
from pathlib import Path

from sparsight.activations import harvest
from sparsight.circuits.discovery import TASKS, WidthPoint, error_share_curve, organism_task
from sparsight.dictionaries import AbstractDictionary, TopK
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.studies.drawing import draw
from sparsight.studies.record import Line, Panel
from sparsight.training import Training, train

SITES = (Site(1, "mlp_out"), Site(2, "mlp_out"), Site(2, "resid_post"))
WIDTHS = (64, 256, 1024, 2048)
N_EXAMPLES = 40


def dictionaries(lm: LanguageModel, out: Path) -> dict[int, dict[Site, AbstractDictionary]]:
    """By width, one for each site."""
    documents = (d for start in count(0, 1000) for d in organism.corpus(1, 1000, start=start))
    store = harvest(lm, documents, list(SITES), out / "store", n_tokens=150_000, resume=True)
    made: dict[int, dict[Site, AbstractDictionary]] = {width: {} for width in WIDTHS}
    for site in SITES:
        configs = [TopK(width, k=16, dead_after=20_000) for width in WIDTHS]
        training = Training(n_tokens=200_000, batch_size=1024, lr=2e-3, seed=0)
        for run in train(store, configs, training, out=out / "dicts" / str(site), site=site, resume=True):
            made[run.dictionary.n_latents][site] = run.dictionary
    return made


def panels(points: dict[str, list[WidthPoint]]) -> list[Panel]:
    """Error share, and what is left without errors, by width."""
    shares, rests = [], []
    for task, curve in points.items():
        x: list[float | str] = [point.width for point in curve]
        shares.append(Line(name=task, x=x, y=[point.error_share for point in curve]))
        rest = [point.without_errors for point in curve]
        rests.append(
            Line(name=task, x=x, y=[r.value for r in rest], low=[r.low for r in rest], high=[r.high for r in rest])
        )
    return [
        Panel(title="errors' share of all effects", x_label="latents", y_label="share", lines=shares, x_log=True),
        Panel(title="every latent kept, errors ablated", x_label="latents", y_label="faithfulness", lines=rests,
              x_log=True),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lm = load_model("organism", device="cpu")
    made = dictionaries(lm, options.out)
    points = {}
    for task in TASKS:
        file = options.out / f"{task}.json"
        if not file.exists():
            parts = [organism_task(lm, task, N_EXAMPLES, seed=0, part=part) for part in (0, 1)]
            curve = error_share_curve(lm, {w: dict(at) for w, at in made.items()}, parts[0], parts[1])
            file.write_text(json.dumps([point.model_dump() for point in curve], indent=1))
        points[task] = [WidthPoint.model_validate(row) for row in json.loads(file.read_text())]
        for point in points[task]:
            print(f"{task}, {point.width} latents: errors {point.error_share:.3f}; without: {point.without_errors}")
    if options.figure is not None:
        title = "Latents against errors, by width; 1.mlp_out, 2.mlp_out, 2.resid_post together"
        draw(panels(points), title).savefig(options.figure, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
