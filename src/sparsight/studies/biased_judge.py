"""Can SHIFT be judged from the biased inputs alone, and which hypotheses do they leave undecidable?"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from sparsight.studies.biased_judge_measured import (
    ARMS,
    DECIDED,
    DELETED,
    FAST,
    FULL,
    NAMED,
    ORACLE,
    ORIGINAL,
    RANDOM,
    SERVING,
    SHIFT,
    Plan,
    dictionaries,
    one_seed,
)
from sparsight.studies.deciding import all_on_one_side, mean_effect, power_note, side
from sparsight.studies.record import UNDECIDED, Effect, Findings, Line, Panel, Table, Verdict
from sparsight.studies.work import Work

MARGIN = 0.05  # worst-group accuracy that counts as a loss


def run(work: Work) -> Findings:
    """Worst-group accuracy over judges and baselines, by seed.

    Raises:
        ValueError: the model is not the organism: no other brings labelled biographies.
    """
    if work.options.model != "organism" or work.options.texts:
        raise ValueError(
            "this study needs biographies with labels of every word, which only the organism brings; for other models "
            "use `sparsight shift`"
        )
    plan = FAST if work.options.fast else FULL
    made = dictionaries(work, plan)
    seeds = [work.part(f"seed-{s}", partial(one_seed, work, plan, made, s)) for s in range(plan.seeds)]
    return Findings(
        verdicts=[judged_alone(seeds), against_deletion(seeds), serving_alone(seeds), left_open(seeds)],
        tables=[
            _arms_table(seeds),
            _traces_table(seeds),
            _serving_table(seeds),
            _judged_table(seeds),
            _open_table(seeds),
        ],
        figures=[
            _panel(seeds, "worst_group", "worst group's accuracy"),
            _panel(seeds, "spurious", "agrees with gender"),
        ],
        caption="Left: accuracy in the worst of four groups, test texts with all combinations, mean over seeds with "
        "its interval. Right: how often the prediction equals the gender; 0.5 says that it is not used.",
        method=_method(plan),
        limits=[
            "One model of four layers and one corpus, in which gender is a plain property of few words; the labels "
            "that judge know what every word means, as a careful reader would. A language model as judge is built and "
            "tested against a stub, not measured here.",
            "Keeping serving latents alone was thought of after the other arms had failed, and tried on test texts of "
            "two seeds of --seed 0, the bound of 95 % on those of the first seed of --seed 1: its figures there are "
            "not those of a fresh trial.",
            "Dictionaries are trained once; seeds draw other texts, classifiers and random latents.",
            "The judge's rules were fixed on English biographies read at the embeddings, with other seeds. The number "
            "judged was raised from 60 to 400 after a first run of seed 0, in which all of the 60 were gender's and "
            "removing them left the worst group at 0.00.",
            "The texts have no noise: gender separates the classes perfectly, so that a classifier fitted anew finds "
            "any trace of it that errors or latents not judged still carry.",
        ],
        notes=[f"Readings left open, seed 0: {'; '.join(seeds[0]['examples'])}."] if seeds[0]["examples"] else [],
    )


def worst(seeds: Sequence[Any], arm: str, other: str | None = None) -> list[float]:
    """The worst group's accuracy of an arm by seed, or by how much it exceeds that of another."""
    values = [float(s["arms"][arm]["worst_group"]) for s in seeds]
    if other is None:
        return values
    return [a - b for a, b in zip(values, worst(seeds, other), strict=True)]


def judged_alone(seeds: Sequence[Any]) -> Verdict:
    """Whether judging from the biased texts is as good as judging with data that decide, and better than nothing."""
    loss = mean_effect(worst(seeds, SHIFT, DECIDED), "biased texts - deciding data", "worst-group accuracy, over seeds")
    gain = mean_effect(worst(seeds, SHIFT, ORIGINAL), "SHIFT - original", "worst-group accuracy, over seeds")
    luck = mean_effect(worst(seeds, SHIFT, RANDOM), "SHIFT - random latents", "worst-group accuracy, over seeds")
    return Verdict(
        question="Can SHIFT be judged from the biased texts alone, losing no more than 0.05 of worst-group accuracy?",
        answer=_no_loss(loss, [gain, luck]),
        because=f"Worst-group accuracy {_mean(seeds, ORIGINAL)} before, {_mean(seeds, SHIFT)} judged from the biased "
        f"texts, {_mean(seeds, DECIDED)} judged with deciding data, {_mean(seeds, RANDOM)} with as many random "
        f"latents, {_mean(seeds, ORACLE)} for a classifier of balanced texts; loss {loss}.",
        effects=[loss, gain, luck],
        would_change=f"A mean loss beyond {MARGIN}; it is {loss}.",
    )


def _no_loss(loss: Effect, gains: Sequence[Effect]) -> str:
    """Yes if every gain is above 0 and the loss is within the margin, no if a gain is not or the loss is beyond it."""
    shifted = loss.model_copy(update={
        name: None if value is None else value + MARGIN
        for name, value in (("value", loss.value), ("low", loss.low), ("high", loss.high))
    })  # fmt: skip
    sides = [side(shifted), *(side(gain) for gain in gains)]
    if all(s == 1 for s in sides):
        return "yes"
    return "no" if -1 in sides else UNDECIDED


def against_deletion(seeds: Sequence[Any]) -> Verdict:
    """Whether SHIFT beats the plain remedy."""
    more = mean_effect(worst(seeds, SHIFT, DELETED), "SHIFT - words deleted", "worst-group accuracy, over seeds")
    return Verdict(
        question="Does SHIFT do better than deleting names and pronouns from the texts?",
        answer=all_on_one_side([more], wanted=1, on="the seed"),
        because=f"Worst-group accuracy {_mean(seeds, SHIFT)} against {_mean(seeds, DELETED)}, difference {more}.",
        effects=[more],
        would_change=power_note([more]),
    )


def serving_alone(seeds: Sequence[Any]) -> Verdict:
    """Whether the classifier is mended where only latents judged to serve the task pass, at the embeddings."""
    gains = [
        mean_effect(worst(seeds, SERVING, other), f"serving latents alone - {name}", "worst-group accuracy, over seeds")
        for other, name in ((ORIGINAL, "original"), (DELETED, "words deleted"))
    ]
    return Verdict(
        question="Is it mended, better than by deleting names and pronouns, where only latents judged to serve the task"
        " pass the embeddings: no unclear one, none that was not judged, no error?",
        answer=all_on_one_side(gains, wanted=1, on="the seed"),
        because=f"Worst-group accuracy {_mean(seeds, SERVING)} against {_mean(seeds, ORIGINAL)} before and "
        f"{_mean(seeds, DELETED)} with the words deleted. Texts cut down to words of professions give "
        f"{_mean(seeds, NAMED)}, balanced texts {_mean(seeds, ORACLE)}.",
        effects=gains,
        would_change=power_note(gains),
    )


def left_open(seeds: Sequence[Any]) -> Verdict:
    """Whether hypotheses stay that no biased text could decide."""
    shares = [s["undecided"]["undecided"] / s["undecided"]["judged"] for s in seeds]
    undecided = mean_effect(shares, "judged latents left open", "share, over seeds")
    total = {key: sum(s["undecided"][key] for s in seeds) for key in seeds[0]["undecided"]}
    narrow = sum(total[f"undecided, only with {what}"] for what in ("the target", "the spurious feature", "both"))
    return Verdict(
        question="Do hypotheses about the judged latents stay that the biased texts cannot decide?",
        answer=all_on_one_side([undecided], wanted=1, on="the seed"),
        because=f"Of {total['judged']} judged latents, {total['undecided']} have readings that no token of the biased "
        f"texts tells apart; opened afterwards, texts of all combinations show that {narrow} of them do wait for the "
        f"target, the gender or both, and {total['undecided, fires on its words, whatever the rest']} fire on their "
        "words whatever the rest.",
        effects=[undecided],
        would_change=power_note([undecided]),
    )


def _mean(seeds: Sequence[Any], arm: str) -> str:
    return str(mean_effect(worst(seeds, arm), arm, "worst-group accuracy, over seeds"))


def _arms_table(seeds: Sequence[Any]) -> Table:
    rows: list[list[Any]] = []
    for arm in ARMS:
        row: list[Any] = [arm]
        for key in ("worst_group", "accuracy", "spurious"):
            values = [float(s["arms"][arm][key]) for s in seeds]
            row.append(str(mean_effect(values, arm, "over seeds")))
        rows.append(row)
    return Table(
        title="Accuracy on test texts of all combinations, mean over seeds with its interval",
        columns=["classifier", "worst group", "all groups", "equals the gender"],
        rows=rows,
        note="All but the first two are fitted anew on the biased texts under the edit they are tested under; the "
        "oracle on balanced ones. 'Deciding' data have gender and profession independent: the biased setting has none.",
    )


def _traces_table(seeds: Sequence[Any]) -> Table:
    rows: list[list[Any]] = []
    for arm in seeds[0]["traces"]:
        task, other = ([float(s["traces"][arm][i]) for s in seeds] for i in (0, 1))
        ratio = [b / max(a, 1e-12) for a, b in zip(task, other, strict=True)]
        rows.append([arm, *(str(mean_effect(values, arm, "over seeds")) for values in (task, other, ratio))])
    return Table(
        title="What is left to go by: half the distance between mean activations, on deciding texts",
        columns=["removed", "by profession", "by gender", "gender / profession"],
        rows=rows,
        note="In the biased texts the two go together, so that a classifier fitted anew leans on the larger one.",
    )


def _serving_table(seeds: Sequence[Any]) -> Table:
    rows: list[list[Any]] = []
    for arm in seeds[0]["serving"]:
        facts = [s["serving"][arm] for s in seeds]
        carried = str(mean_effect([float(f["biased accuracy"]) for f in facts], arm, "over seeds"))
        counts = [sum(f[key] for f in facts) / len(facts) for key in ("judged", "kept")]
        rows.append([arm, *counts, carried, _mean(seeds, arm)])
    return Table(
        title="Serving latents alone: how much of the task they carry, as more biased texts say",
        columns=["classifier", "judged", "kept", "accuracy on more biased texts", "worst group"],
        rows=rows,
        note="The accuracy on biased texts may be used to choose where to judge: nothing that was judged against or "
        "not judged can raise it.",
    )


def _judged_table(seeds: Sequence[Any]) -> Table:
    keys = [*seeds[0]["judged"], *seeds[0]["agreement"]]
    return Table(
        title="Judgements of the labels, and whether deciding data agree",
        columns=["seed", *keys],
        rows=[[i, *s["judged"].values(), *s["agreement"].values()] for i, s in enumerate(seeds)],
    )


def _open_table(seeds: Sequence[Any]) -> Table:
    keys = list(seeds[0]["undecided"])
    return Table(
        title="What the biased texts leave open about the judged latents, and the truth opened afterwards",
        columns=["seed", *keys],
        rows=[[i, *(s["undecided"][key] for key in keys)] for i, s in enumerate(seeds)],
        note="Readings: a latent fires on its words W always; only where the profession is of a class; only where the "
        "gender is. A question is open if no token of the biased texts would look different under its answers.",
    )


def _panel(seeds: Sequence[Any], key: str, label: str) -> Panel:
    effects = [mean_effect([float(s["arms"][arm][key]) for s in seeds], arm, "over seeds") for arm in ARMS]
    low = [e.value if e.low is None else max(0.0, min(e.low, e.value)) for e in effects]
    high = [e.value if e.high is None else min(1.0, max(e.high, e.value)) for e in effects]
    line = Line(name="", x=[f"{i + 1}" for i in range(len(ARMS))], y=[e.value for e in effects], low=low, high=high,
                style="bars")  # fmt: skip
    return Panel(title=label, x_label="row of the table", y_label=label, lines=[line])


def _method(plan: Plan) -> list[str]:
    return [
        f"Task: is the profession of the second five? {plan.n_biased} training biographies in three languages, men of "
        "the first five professions and women of the last five only; a logistic classifier of the mean of "
        "2.resid_post.",
        f"TopK dictionaries ({plan.n_latents} latents, 16 active) at embed and after layers 0, 1 and 2; the "
        f"{plan.n_judged} latents with the largest first-order support are judged; those removed are set to 0 "
        "everywhere, errors kept, and the classifier is fitted anew on the same biased texts.",
        "The judge sees the biased texts only: shares of the latent's value on names and pronouns, on words of a "
        "profession, and whether it tells men from women before the profession is known. Unclear latents stay, unless "
        "the row says otherwise.",
        "Serving latents alone: all latents with any effect are judged at one site, those with 95 % of their value on "
        "words of a profession are kept, and all else is removed there: the others, and what the dictionary leaves "
        "unexplained.",
        f"Tested on {plan.n_test} held-out biographies of all four combinations. Neurons: those of the MLPs of layers "
        "0 to 2, as many judged, by the same judge. Random: as many latents at each site, among those active.",
        f"Decided by: the mean difference of worst-group accuracy over {plan.seeds} seeds; no loss means that its "
        f"interval lies above -{MARGIN}, and that SHIFT beats the original and random latents.",
    ]
