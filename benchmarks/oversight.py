"""Oversight by cognition on the organism: classifiers that answer alike, told apart by the latents they go by.

    python benchmarks/oversight.py --out runs/oversight

Two beds. "fitted": eight linear classifiers of biographies at 2.resid_post, four fitted on professions and four on
genders. "words": 24 heads on the embeddings, half of them by words of professions, the weights of each its own
(`sparsight.circuits.oversight_bed.word_heads`). In both all classifiers answer the biased texts used alike. Latents are
judged blind, from these texts alone (hard) or from 40 texts that decide (relaxed). Negative controls: dictionaries
trained on the biased texts alone; neurons; random directions; and shuffled verdicts, which give p. A few minutes on one
free core; what is trained is kept in the folder and found again.
"""

import argparse
import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sparsight.activations import harvest
from sparsight.circuits import AbstractNodes, DirectionNodes, NeuronNodes, nodes_of
from sparsight.circuits.oversight import oversee
from sparsight.circuits.oversight_bed import word_heads
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

EMBED, READS = Site(None, "embed"), Site(2, "resid_post")
SITES = (EMBED, READS)
ENGLISH = {"english": 1}
SEEDS = 3
SEED = {"fitted": 500, "words": 900}
N_HEADS = {"fitted": 4, "words": 12}  # of either sort


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
    for i in range(N_HEADS["fitted"]):
        texts = organism_biographies(200, seed=seed + i, spurious=False)
        made += [fit_classifier(lm, READS, texts), fit_classifier(lm, READS, of_gender(texts))]
    return made, [True, False] * N_HEADS["fitted"]


def alike(classifiers: list[Classifier], texts: LabelledTexts) -> LabelledTexts:
    """The texts on which all classifiers answer alike."""
    x = pooled_activations(classifiers[0].lm, classifiers[0].site, texts.texts)
    answers = torch.stack([one.of_pooled(x) > 0 for one in classifiers])
    same = (answers == answers[0]).all(dim=0).tolist()
    items = tuple(item for item, keep in zip(texts.items, same, strict=True) if keep)
    return LabelledTexts(items, texts.target, texts.spurious, texts.target_classes, texts.spurious_classes)


def bed(lm: LanguageModel, name: str, seed: int) -> tuple[list[Classifier], list[bool], LabelledTexts, LabelledTexts]:
    """Classifiers, the truth, texts on which all answer alike, and texts that decide."""
    languages = ENGLISH if name == "words" else None
    biased = organism_biographies(200, seed=seed + 10, spurious=True, languages=languages)
    deciding = organism_biographies(40, seed=seed + 11, spurious=False, languages=languages)
    if name == "words":
        made = word_heads(lm, biased, n=N_HEADS[name], seed=seed)
        parts = [[s for s, good in zip(made.by_profession, made.intended, strict=True) if good == side]
                 for side in (True, False)]  # fmt: skip
        print(f"seed {seed}: by professions {min(parts[0]):.2f} and more, {max(parts[1]):.2f} and less", flush=True)
        classifiers, intended = made.heads, made.intended
    else:
        classifiers, intended = heads(lm, seed)
    return classifiers, intended, alike(classifiers, biased), deciding


def one_seed(lm: LanguageModel, sets: dict[str, dict[Site, AbstractNodes]], name: str, s: int) -> list[dict[str, Any]]:
    seed = SEED[name] + 20 * s
    classifiers, intended, at_hand, deciding = bed(lm, name, seed)
    rows = []
    for kind, every_site in sets.items():
        nodes = {site: at for site, at in every_site.items() if site <= classifiers[0].site}
        every = {site: list(range(at.n_latents)) for site, at in nodes.items()}
        judges: dict[str, Judge] = {
            "hard": LabelJudge(),
            "relaxed": DisambiguatedJudge.of(read(lm, nodes, deciding, every)),
        }
        for how, judge in judges.items():
            found = oversee(classifiers, nodes, at_hand, judge, intended, n_judged=300, seed=seed)
            sides = [[x.value for x, good in zip(found.scores, intended, strict=True) if good == side]
                     for side in (True, False)]  # fmt: skip
            gap = sum(sides[0]) / len(sides[0]) - sum(sides[1]) / len(sides[1])
            rows.append({"seed": s, "texts": len(at_hand), "nodes": kind, "how": how, "auroc": found.auroc, "gap": gap,
                         "p": found.p_value, "judged": found.n_judged})  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bed", choices=list(N_HEADS), nargs="+", default=list(N_HEADS))
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    lm = load_model("organism", device="cpu")
    broad = (d for start in count(0, 1000) for d in organism.corpus(1, 1000, start=start))
    turned = torch.linalg.qr(
        torch.randn(lm.width(EMBED), lm.width(EMBED), generator=torch.Generator().manual_seed(9))
    ).Q
    sets: dict[str, dict[Site, AbstractNodes]] = {
        "broad dictionaries": nodes_of(lm, dict(dictionaries(lm, broad, out / "broad"))),
        "dictionaries of the biased texts": nodes_of(lm, dict(dictionaries(lm, biased_documents(), out / "biased"))),
        "neurons": {site: NeuronNodes(site, lm.width(site)) for site in SITES},
        "random directions": {site: DirectionNodes(site, turned) for site in SITES},
    }
    for bed_name in options.bed:
        rows = []
        for s in range(SEEDS):
            file = out / f"{bed_name}-{s}.json"
            if not file.exists():
                file.write_text(json.dumps(one_seed(lm, sets, bed_name, s), indent=1))
            rows += json.loads(file.read_text())
        for name in sets:
            for how in ("hard", "relaxed"):
                mine = [row for row in rows if row["nodes"] == name and row["how"] == how]
                parts = [f"{key} {sum(row[key] for row in mine) / len(mine):.3f} ({min(row[key] for row in mine):.3f} "
                         f"to {max(row[key] for row in mine):.3f})" for key in ("auroc", "gap", "p")]  # fmt: skip
                print(f"{bed_name}: {name}, {how}: {', '.join(parts)}; {mine[0]['judged']} judged, "
                      f"{mine[0]['texts']} texts")  # fmt: skip


if __name__ == "__main__":
    main()
