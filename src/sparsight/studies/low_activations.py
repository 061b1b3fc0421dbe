"""Are weakly active latents interesting, or interference; does pursuit have fewer; would a threshold do?"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from sparsight.evaluation import Comparison
from sparsight.evaluation.record import Estimate
from sparsight.studies.deciding import all_on_one_side, effect_of, mean_effect, power_note, separate_difference
from sparsight.studies.low_activations_measured import K, Measured, Plan, planted_values
from sparsight.studies.low_activations_shown import (
    label_table,
    mass_panel,
    paired_table,
    planted_mean,
    planted_table,
    quarter_panel,
    small_table,
    sweep_panel,
    sweep_table,
)
from sparsight.studies.record import Findings, Verdict
from sparsight.studies.subject import is_organism
from sparsight.studies.work import Work

SETTINGS = {"true weights 1 + Exp(1)": 1.0, "true weights Exp(1)": 0.0}  # the second has small weights in truth
FULL = Plan(seeds=6, signals=2_000, n_stored=200_000, n_trained=400_000, n_coded=12_288, ks=(4, 8, 16))


FAST = Plan(seeds=3, signals=1_000, n_stored=50_000, n_trained=60_000, n_coded=6_144, ks=(8, 16))


def run(work: Work) -> Findings:
    """Small values and their precision, on planted truth and against labels; thresholds at equal L0."""
    plan = FAST if work.options.fast else FULL
    planted = {
        name: work.part(f"planted-{least:g}", partial(planted_values, least, plan, work.options.seed))
        for name, least in SETTINGS.items()
    }
    measured = Measured(work, plan)
    small = work.part("small-values", measured.small)
    labels = work.part("labels", measured.labels) if is_organism(work) else {}
    sweep = {
        name: Comparison.model_validate(work.part(f"thresholds-{name}", partial(measured.thresholds, name)))
        for name in ("TopK", "JumpReLU")
    }
    paired = {
        name: work.part(f"token-by-token-{name}", partial(measured.token_by_token, name))
        for name in ("TopK", "JumpReLU")
    }
    return Findings(
        verdicts=[
            _better_than_chance(planted, labels),
            _fewer(planted, small),
            _more_precise(planted, labels),
            _same_budget(paired),
            _threshold(sweep),
        ],
        tables=[planted_table(planted), small_table(small), *([label_table(labels)] if labels else []),
                paired_table(paired), *(sweep_table(name, c) for name, c in sweep.items())],
        figures=[quarter_panel(planted, labels), mass_panel(planted, small), sweep_panel(sweep["JumpReLU"])],
        caption="Share of active values whose latent is right, by size of the value among its latent's values (left); "
        "share of small values (middle); FVU when small values are cut off at equal L0 (right).",
        method=_method(plan, bool(labels)),
        limits=[
            "Labels test only latents that tell a label well; what the others mean is not known, so neither are their "
            "small values.",
            "A label that holds at one token may make a latent right at the next: precision by labels is a "
            "lower bound.",
            "On planted data all coders get the true atoms; the encoder is linear and tied, not trained.",
        ],
        notes=[
            "The comparison token by token was added after a short run had been seen: there the threshold, free to "
            "spend more latents on some tokens, had beaten pursuit on the JumpReLU dictionary.",
        ],
    )  # fmt: skip


def _better_than_chance(planted: Mapping[str, Any], labels: Mapping[str, Any]) -> Verdict:
    effects = [
        mean_effect(
            [d["encoder, threshold"]["precision"][0] - 10 / 512 for d in draws],
            f"planted, {name}: encoder's weakest quarter - chance",
            "precision, over draws",
        )
        for name, draws in planted.items()
    ]
    effects += [
        effect_of(Estimate(**found["weakest - chance"]), f"{name}: weakest quarter - chance", found["n_documents"],
                  "precision against labels, over documents")
        for name, found in labels.items() if name.endswith("encoder")
    ]  # fmt: skip
    tops = "; ".join(
        f"{name}: {found['precision'][0]['value']:.2f} against {found['precision'][3]['value']:.2f} in the "
        "strongest and "
        f"{found['chance']:.2f} by chance" for name, found in labels.items() if name.endswith("encoder")
    )  # fmt: skip
    planted_tops = "; ".join(
        f"{name}: {planted_mean(draws, 'encoder, threshold', 'precision', 0).value:.2f} against "
        f"{planted_mean(draws, 'encoder, threshold', 'precision', 3).value:.2f}"
        for name, draws in planted.items()
    )
    return Verdict(
        question="Are the weakest quarter of an encoder's active values right more often than chance?",
        answer=all_on_one_side(effects, wanted=1, on="the data"),
        because="Precision of the weakest quarter against the strongest, planted: "
        f"{planted_tops} (chance {10 / 512:.2f}). " + (f"Against labels: {tops}." if tops else ""),
        effects=effects,
        would_change=power_note(effects),
    )


def _fewer(planted: Mapping[str, Any], small: Mapping[str, Any]) -> Verdict:
    effects = [
        mean_effect(
            [d["pursuit"]["mass"][1] - d["encoder, threshold"]["mass"][1] for d in draws],
            f"planted, {name}",
            "share of active values below 0.1, pursuit - encoder, over draws",
        )
        for name, draws in planted.items()
    ]
    for name in ("TopK", "JumpReLU"):
        mine, theirs = small[f"{name}, pursuit"], small[f"{name}, encoder"]
        effects.append(
            separate_difference(
                Estimate(**mine["mass"][1]), Estimate(**theirs["mass"][1]), f"{name} atoms", mine["n_documents"],
                "share of active values below 0.1, pursuit - encoder, over documents",
            )
        )  # fmt: skip
    return Verdict(
        question="Does pursuit have fewer small values than the encoder at equal L0?",
        answer=all_on_one_side(effects, wanted=-1, on="the dictionary"),
        because="Share of active values below a tenth of their latent's 99th percentile, pursuit less encoder: "
        + "; ".join(f"{e.name} {e}" for e in effects) + ".",
        effects=effects,
        would_change=power_note(effects),
    )  # fmt: skip


def _more_precise(planted: Mapping[str, Any], labels: Mapping[str, Any]) -> Verdict:
    effects = [
        mean_effect(
            [d["pursuit"]["precision"][0] - d["encoder, threshold"]["precision"][0] for d in draws],
            f"planted, {name}",
            "precision of the weakest quarter, pursuit - encoder, over draws",
        )
        for name, draws in planted.items()
    ]
    for name in ("TopK", "JumpReLU") if labels else ():
        mine, theirs = labels[f"{name}, pursuit"], labels[f"{name}, encoder"]
        effects.append(
            separate_difference(
                Estimate(**mine["precision"][0]), Estimate(**theirs["precision"][0]), f"{name} atoms, labels",
                mine["n_documents"], "precision of the weakest quarter, pursuit - encoder, over documents",
            )
        )  # fmt: skip
    return Verdict(
        question="Are pursuit's weakest values right more often than the encoder's?",
        answer=all_on_one_side(effects, wanted=1, on="what counts as right: planted truth, or labels"),
        because="; ".join(f"{e.name}: {e}" for e in effects) + ".",
        effects=effects,
        would_change=power_note(effects),
    )


def _threshold(sweep: Mapping[str, Comparison]) -> Verdict:
    effects = []
    for name, c in sweep.items():
        arms = {(a.arm, a.k): a for a in c.arms}
        for k in dict.fromkeys(a.k for a in c.arms):
            effects.append(
                separate_difference(arms["thresholded", k].fvu, arms["pursuit", k].fvu, f"{name} at k = {k}",
                                    c.n_documents, "FVU, thresholded - pursuit, over documents")
            )  # fmt: skip
    return Verdict(
        question="Would a threshold on the encoder, free to spend more latents on some tokens, do as well as "
        "pursuit with "
        "k in each token, at equal mean L0?",
        answer=all_on_one_side(effects, wanted=-1, on="the dictionary and k"),
        because="FVU of the thresholded encoder minus that of pursuit: "
        + "; ".join(f"{e.name} {e}" for e in effects) + ".",
        effects=effects,
        would_change=power_note(effects),
    )  # fmt: skip


def _same_budget(paired: Mapping[str, Any]) -> Verdict:
    effects = [
        effect_of(Estimate(**f[how]), f"{name} at k = {k}, {how}", f["n_documents"],
                  "FVU, thresholded - pursuit, over documents")
        for how in ("refitted", "as cut")
        for name, by_k in paired.items()
        for k, f in by_k.items()
    ]  # fmt: skip
    return Verdict(
        question="Would a threshold on the encoder do as well as pursuit given the same number of latents in "
        "every token?",
        answer=all_on_one_side(effects, wanted=-1, on="the dictionary and k"),
        because="FVU of the thresholded encoder, even with refitted values, minus that of pursuit: "
        + "; ".join(f"{e.name} {e}" for e in effects if e.name.endswith("refitted"))
        + ".",
        effects=effects,
        would_change=power_note(effects),
    )


def _method(plan: Plan, labelled: bool) -> list[str]:
    said = [
        f"Planted: {plan.seeds} draws of {plan.signals:,} signals, with true weights bounded away from 0 and "
        "with weights "
        "that are often small; the encoder keeps inner products above one threshold, set for a mean L0 of the true 10.",
        f"Model: a TopK and a JumpReLU dictionary (L0 {K}), trained on {plan.n_trained:,} activations; their "
        "own codes, "
        f"and gradient pursuit of {K} steps over the same atoms.",
        "The size of a value is its ratio to the 99th percentile of its own latent's values.",
        "Thresholds: positive pre-activations above one threshold, set on training documents for a mean L0 of k.",
        "Differences between coders use the ends of two separate intervals, which is too wide, not too narrow.",
        "Decided by: the weakest quarter's precision less chance; the share of values below "
        "0.1, pursuit "
        "less encoder; FVU of thresholded less pursuit; each must lie on one side of 0 in every case.",
    ]
    if not labelled:
        said.append("This model's texts carry no labels, so that precision is known on planted signals only.")
    return said
