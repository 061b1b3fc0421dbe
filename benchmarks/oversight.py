"""Oversight by cognition on the organism: classifiers that answer alike, told apart by the latents they go by.

    python benchmarks/oversight.py --out runs/oversight

Eight linear classifiers of biographies, four fitted on professions and four on genders, and the biased texts on which
all eight answer alike. Latents are judged blind, from these texts alone (hard) or from 40 texts that decide (relaxed).
Negative controls: dictionaries trained on the biased texts alone; neurons; and shuffled verdicts, which give p. A few
minutes on one free core; what is trained is kept in the folder and found again.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sparsight.activations import harvest
from sparsight.circuits import AbstractNodes, NeuronNodes, nodes_of
from sparsight.circuits.oversight import oversee
from sparsight.circuits.shift import (
    Classifier,
    DisambiguatedJudge,
    LabelJudge,
    LabelledText,
    LabelledTexts,
    fit_classifier,
    organism_biographies,
)
from sparsight.circuits.shift.classifier import pooled_activations
from sparsight.circuits.shift.evidence import read
from sparsight.circuits.shift.judges import Judge
from sparsight.dictionaries import AbstractDictionary, TopK
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.training import Training, train

READS = Site(2, "resid_post")
SITES = (Site(None, "embed"), READS)
SEEDS = 3
N_HEADS = 4  # of either sort


def dictionaries(lm: LanguageModel, documents: Iterable[Any], out: Path) -> dict[Site, AbstractDictionary]:
    store = harvest(lm, documents, list(SITES), out / "store", n_tokens=100_000, resume=True)
    training = Training(n_tokens=200_000, batch_size=1024, lr=2e-3, seed=0)
    config = TopK(1024, k=16, dead_after=20_000)
    return {
        site: train(store, [config], training, out=out / "dicts" / str(site), site=site, resume=True)[0].dictionary
        for site in SITES
    }


def biased_documents() -> Iterable[Any]:
    """Biographies of men of five professions and women of the five others, without end."""
    for start in count(0, 1000):
        yield from organism.corpus(1, 1000, start=start, domains={"biography": 1}, gender_profession_correlation=1.0)


def of_gender(texts: LabelledTexts) -> LabelledTexts:
    """The same texts with the gender to be told."""
    items = tuple(LabelledText(i.id, i.text, i.spurious, i.spurious, i.labels) for i in texts.items)
    return LabelledTexts(items, texts.spurious, texts.spurious, texts.spurious_classes, texts.spurious_classes)


def heads(lm: LanguageModel, seed: int) -> tuple[list[Classifier], list[bool]]:
    made = []
    for i in range(N_HEADS):
        texts = organism_biographies(200, seed=seed + i, spurious=False)
        made += [fit_classifier(lm, READS, texts), fit_classifier(lm, READS, of_gender(texts))]
    return made, [True, False] * N_HEADS


def alike(classifiers: list[Classifier], texts: LabelledTexts) -> LabelledTexts:
    """The texts on which all classifiers answer alike."""
    x = pooled_activations(classifiers[0].lm, READS, texts.texts)
    answers = torch.stack([one.of_pooled(x) > 0 for one in classifiers])
    same = (answers == answers[0]).all(dim=0).tolist()
    items = tuple(item for item, keep in zip(texts.items, same, strict=True) if keep)
    return LabelledTexts(items, texts.target, texts.spurious, texts.target_classes, texts.spurious_classes)


def one_seed(lm: LanguageModel, sets: dict[str, dict[Site, AbstractNodes]], s: int) -> list[dict[str, Any]]:
    seed = 500 + 20 * s
    classifiers, intended = heads(lm, seed)
    at_hand = alike(classifiers, organism_biographies(200, seed=seed + 10, spurious=True))
    deciding = organism_biographies(40, seed=seed + 11, spurious=False)
    rows = []
    for name, nodes in sets.items():
        every = {site: list(range(at.n_latents)) for site, at in nodes.items()}
        judges: dict[str, Judge] = {
            "hard": LabelJudge(),
            "relaxed": DisambiguatedJudge.of(read(lm, nodes, deciding, every)),
        }
        for how, judge in judges.items():
            found = oversee(classifiers, nodes, at_hand, judge, intended, n_judged=300, seed=seed)
            sides = [[x.value for x, good in zip(found.scores, intended, strict=True) if good == side]
                     for side in (True, False)]  # fmt: skip
            gap = sum(sides[0]) / N_HEADS - sum(sides[1]) / N_HEADS
            rows.append({"seed": s, "texts": len(at_hand), "nodes": name, "how": how, "auroc": found.auroc, "gap": gap,
                         "p": found.p_value, "judged": found.n_judged})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    lm = load_model("organism", device="cpu")
    broad = (d for start in count(0, 1000) for d in organism.corpus(1, 1000, start=start))
    sets: dict[str, dict[Site, AbstractNodes]] = {
        "broad dictionaries": nodes_of(lm, dict(dictionaries(lm, broad, out / "broad"))),
        "dictionaries of the biased texts": nodes_of(lm, dict(dictionaries(lm, biased_documents(), out / "biased"))),
        "neurons": {site: NeuronNodes(site, lm.width(site)) for site in SITES},
    }
    rows = []
    for s in range(SEEDS):
        file = out / f"seed-{s}.json"
        if not file.exists():
            file.write_text(json.dumps(one_seed(lm, sets, s), indent=1))
        rows += json.loads(file.read_text())
    for name in sets:
        for how in ("hard", "relaxed"):
            mine = [row for row in rows if row["nodes"] == name and row["how"] == how]
            parts = [f"{key} {sum(row[key] for row in mine) / len(mine):.3f} ({min(row[key] for row in mine):.3f} to "
                     f"{max(row[key] for row in mine):.3f})" for key in ("auroc", "gap", "p")]  # fmt: skip
            print(f"{name}, {how}: {', '.join(parts)}; {mine[0]['judged']} judged, {mine[0]['texts']} texts")


if __name__ == "__main__":
    main()
