"""Does pursuit pick atoms orthogonal to the span chosen so far, and does it matter?"""

from functools import partial
from typing import Any

from sparsight.evaluation.record import Estimate
from sparsight.studies.deciding import all_on_one_side, effect_of, mean_effect, power_note, side
from sparsight.studies.orthogonality_quirk_measured import (
    NEAR_LEARNED,
    K,
    Plan,
    learned_overlap,
    pair_recalls,
    planted_overlap,
)
from sparsight.studies.orthogonality_quirk_shown import (
    REFERENCE,
    near_table,
    overlap_panel,
    overlap_table,
    recall_panel,
    recall_table,
)
from sparsight.studies.record import Effect, Findings, Verdict
from sparsight.studies.work import Work

NEAR = 0.8  # cosine from which planted atoms count as near-duplicates
FULL = Plan(seeds=8, signals=300, n_stored=200_000, n_trained=400_000, n_coded=8_192)


FAST = Plan(seeds=3, signals=200, n_stored=40_000, n_trained=60_000, n_coded=2_048)


def run(work: Work) -> Findings:
    """Recall of planted near-duplicates; overlap with the chosen span on planted and on learned atoms."""
    plan = FAST if work.options.fast else FULL
    recalls = {
        key: work.part(
            f"pairs-{key[0]}-{'both' if key[1] else 'one'}", partial(pair_recalls, key, plan, work.options.seed)
        )
        for key in REFERENCE
    }
    planted = work.part("planted-overlap", partial(planted_overlap, plan, work.options.seed))
    natural = work.part("learned-overlap", partial(learned_overlap, work, plan))
    gaps = {key: _recall_gap(key, rows) for key, rows in recalls.items()}
    avoids = [
        *(mean_effect([r["GP"] - r["random"] for r in rows], f"{name}: GP - random atoms", "overlap, over draws")
          for name, rows in planted.items()),
        *(_natural_effect(natural, name, "pursuit - random") for name in natural),
    ]  # fmt: skip
    return Findings(
        verdicts=[
            _avoids(_against_encoder(planted, natural), "the encoder's picks are"),
            _avoids(avoids, "random atoms are"),
            _matters(gaps),
            _prevalence(natural),
        ],
        tables=[recall_table(recalls), overlap_table(planted, natural), near_table(natural)],
        figures=[recall_panel(recalls, True), recall_panel(recalls, False), overlap_panel(planted, natural)],
        caption="Recall of planted near-duplicates, both members of a pair truly active (left) or only one (middle); "
        "crosses: an independent computation. Right: mean overlap of an atom with the span of those chosen before it.",
        method=[
            f"Planted pairs: 64 pairs in 64 dimensions at a given cosine, three pairs active, k as many as are true; "
            f"{plan.seeds} draws of {plan.signals} signals. The encoder is linear and tied to the true atoms.",
            f"Learned atoms: dictionaries of {_width(natural)} latents, k = {K}, trained on {plan.n_trained:,} "
            f"activations; {plan.n_coded:,} held-out tokens. The encoder's picks are its largest pre-activations, "
            "largest first; the Pursuit dictionary has no encoder.",
            "Overlap: length of an atom's projection onto the span of the atoms chosen before it in the same token, 0 "
            "to 1; mean over slots from the second on. Random atoms are projected onto the spans that pursuit chose.",
            "Exact part: after least squares an atom's score is at most |r| times its sine to the span; the largest "
            "violation over all planted draws is "
            f"{max(r['violation'] for rows in planted.values() for r in rows):.1e}.",
            "Decided by: pursuit avoids the span if the overlap of its atoms less that of the control lies below 0 "
            "everywhere; it matters if the recall of GP less that of the encoder lies below 0 at every cosine from "
            f"{NEAR} on; where the signs differ, it depends.",
        ],
        limits=[
            "Whether near-duplicates of a natural dictionary are truly active together cannot be known: only planted "
            "truth says which coder is right.",
            "A random atom is a weak control on natural data: activations lie near few directions, so any atom worth "
            "choosing is nearer to the span than a random one. The encoder's picks are the other control.",
            "The encoder of the planted table is tied and linear; a trained one does better.",
        ],
        notes=[
            f"The verdict against the encoder's picks, and the cosine of {NEAR_LEARNED} for learned atoms, "
            "were chosen after "
            "a short run had been seen; the other rules were not.",
            "A dictionary trained with pursuit holds more near-duplicates, not fewer: "
            f"{natural['Pursuit']['with_twin']:.1%} "
            f"of its atoms have one, and {natural['Pursuit']['together']['pursuit']['value']:.1%} of tokens "
            "use two together.",
        ],
    )


def _natural_effect(natural: Any, name: str, what: str, kind: str = "overlap", unit: str = "overlap") -> Effect:
    found = natural[name]
    return effect_of(Estimate(**found[kind][what]), f"{name} atoms: {what}", found["n_documents"],
                     f"{unit}, over documents")  # fmt: skip


def _recall_gap(key: tuple[float, bool], rows: list[dict[str, float]]) -> Effect:
    name = f"GP - encoder, cosine {key[0]}, {'both' if key[1] else 'one'} active"
    return mean_effect([r["GP"] - r["encoder"] for r in rows], name, "recall, over draws")


def _against_encoder(planted: Any, natural: Any) -> list[Effect]:
    return [
        *(mean_effect([r["GP"] - r["encoder"] for r in rows], f"{name}: GP - encoder", "overlap, over draws")
          for name, rows in planted.items()),
        *(_natural_effect(natural, name, "pursuit - encoder") for name in natural
          if "pursuit - encoder" in natural[name]["overlap"]),
    ]  # fmt: skip


def _avoids(effects: list[Effect], than: str) -> Verdict:
    return Verdict(
        question=f"Does pursuit choose atoms further from the span of those chosen so far than {than}?",
        answer=all_on_one_side(effects, wanted=-1, on="the dictionary"),
        because=f"The overlap of its atoms is lower in {sum(side(e) < 0 for e in effects)} of {len(effects)} cases and "
        f"higher in {sum(side(e) > 0 for e in effects)}.",
        effects=effects,
        would_change=power_note(effects),
    )


def _matters(gaps: dict[tuple[float, bool], Effect]) -> Verdict:
    deciding = [e for (cosine, _), e in gaps.items() if cosine >= NEAR]
    worst = gaps[0.95, True]
    best = gaps[0.95, False]
    return Verdict(
        question="Does it cost recall of near-duplicates (planted truth)?",
        answer=all_on_one_side(deciding, wanted=-1, on="whether near-duplicates are truly active together"),
        because=f"At cosine 0.95, GP less encoder in recall is {worst} where both members of a pair are active, and "
        f"{best} where only one is.",
        effects=list(gaps.values()),
        would_change=power_note(deciding),
    )


def _prevalence(natural: Any) -> Verdict:
    effect = _natural_effect(natural, "TopK", "pursuit - encoder", "together", "share of tokens")
    share = natural["TopK"]["with_twin"]
    coder = natural["TopK"]["together"]
    return Verdict(
        question="On learned atoms, does pursuit use two near-duplicates together less often than the encoder does "
        f"(cosine above {NEAR_LEARNED})?",
        answer=all_on_one_side([effect], wanted=-1, on="the dictionary")
        if share > 0
        else "depends on whether the dictionary has near-duplicates, and this one has none",
        because=f"{share:.1%} of the TopK dictionary's atoms have a near-duplicate. A token uses two together in "
        f"{coder['pursuit']['value']:.2%} of pursuit's codes and in {coder['encoder']['value']:.2%} of the encoder's.",
        effects=[effect],
        would_change=power_note([effect]),
    )


def _width(natural: Any) -> str:
    return f"{natural['TopK']['n_latents']:,}"
