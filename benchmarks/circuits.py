"""Circuits of the organism's behaviours: how many nodes carry them, latents against neurons and random nodes.

    python benchmarks/circuits.py --out runs/circuits --figure docs/images/circuits.png

Trains a TopK dictionary (1024 latents, 16 active, 300,000 activations) at attn_out, mlp_out, resid_post of every layer,
finds a circuit of each behaviour on 40 pairs and measures it on 40 others. About ten minutes on one free core; what is
finished is kept in the folder and found again.
"""

import argparse
import json
from itertools import count
from pathlib import Path
from typing import Any

from sparsight.activations import harvest
from sparsight.circuits import NeuronNodes
from sparsight.circuits.discovery import TASKS, find_circuit, organism_task, random_nodes
from sparsight.circuits.discovery.measure import Bench, bench_ends, share
from sparsight.dictionaries import AbstractDictionary, TopK
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.studies.drawing import draw
from sparsight.studies.record import Line, Panel
from sparsight.training import Training, train

SITES = [Site(layer, kind) for layer in range(4) for kind in ("attn_out", "mlp_out", "resid_post")]
SIZES = (5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
RANDOM_SIZES = (50, 100, 200)
N_EXAMPLES = 40


def dictionaries(lm: LanguageModel, out: Path) -> dict[Site, AbstractDictionary]:
    documents = (d for start in count(0, 1000) for d in organism.corpus(1, 1000, start=start))
    store = None
    made = {}
    for site in SITES:
        folder = out / "dicts" / str(site)
        if not (folder / "topk-1024-k16" / "dictionary.json").exists() and store is None:
            store = harvest(lm, documents, SITES, out / "store", n_tokens=150_000, resume=True)
        if store is None:
            from sparsight.formats import load_dictionary

            made[site] = load_dictionary(folder / "topk-1024-k16")
            continue
        training = Training(n_tokens=300_000, batch_size=1024, lr=2e-3, seed=0)
        made[site] = train(store, [TopK(1024, k=16, dead_after=20_000)], training, out=folder, site=site,
                           resume=True)[0].dictionary  # fmt: skip
    return made


def measured(lm: LanguageModel, nodes: dict[Site, Any], task: str, kind: str) -> dict[str, Any]:
    found_on, measured_on = (organism_task(lm, task, N_EXAMPLES, seed=0, part=part) for part in (0, 1))
    circuit = find_circuit(lm, nodes, found_on, node_threshold=0.0, edges=False, steps=4)
    bench = Bench.of(circuit, lm, nodes, measured_on)
    ends = bench_ends(bench)
    rows: list[list[Any]] = []
    for n in SIZES:
        for errors in (True, False) if kind == "latents" else (True,):
            rows.append([n, errors, share(bench, circuit.of_size(n, errors=errors).kept, ends=ends).model_dump()])
    for n in RANDOM_SIZES:
        drawn = random_nodes(circuit.of_size(n), seed=1)
        rows.append([n, "random", share(bench, drawn.kept, ends=ends).model_dump()])
    return {"error_share": circuit.error_share(), "rows": rows}


def panel(task: str, found: dict[str, list[list[Any]]]) -> Panel:
    """Faithfulness by the number of nodes, with intervals."""
    lines = []
    for kind, rows in found.items():
        for label, wanted in (("", True), (", errors ablated", False), (", random", "random")):
            shares = [(n, s) for n, errors, s in rows if errors == wanted and type(errors) is type(wanted)]
            if shares:
                x: list[float | str] = [n for n, _ in shares]
                y, low, high = ([s[key] for _, s in shares] for key in ("value", "low", "high"))
                lines.append(Line(name=kind + label, x=x, y=y, low=low, high=high))
    return Panel(title=task, x_label="nodes", y_label="faithfulness", lines=lines, x_log=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    lm = load_model("organism", device="cpu")
    made = dictionaries(lm, out)
    sets: dict[str, dict[Site, Any]] = {
        "latents": dict(made),
        "neurons": {site: NeuronNodes(site, lm.width(site)) for site in SITES},
    }
    panels = []
    for task in TASKS:
        by_kind: dict[str, list[list[Any]]] = {}
        for kind, nodes in sets.items():
            file = out / f"c-{task}-{kind}.json"
            if not file.exists():
                file.write_text(json.dumps(measured(lm, nodes, task, kind)))
            rows = by_kind[kind] = json.loads(file.read_text())["rows"]
            for name, wanted in (("", True), (", errors ablated", False), (", random", "random")):
                shares = [(n, s) for n, errors, s in rows if errors == wanted and type(errors) is type(wanted)]
                if shares:
                    line = "  ".join(f"{n}: {s['value']:.2f} [{s['low']:.2f}, {s['high']:.2f}]" for n, s in shares)
                    print(f"{task}, {kind}{name}: {line}")
        panels.append(panel(task, by_kind))
    if options.figure is not None:
        title = "Circuits of the organism, measured on other examples than found on"
        draw(panels, title).savefig(options.figure, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
