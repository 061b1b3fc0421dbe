"""Evaluations as rows of a page: which numbers are shown, in which unit, and the convention beside each."""

from collections.abc import Callable, Mapping

from sparsight.evaluation import Evaluation
from sparsight.interpretation.page import Estimate, Measurement

Reader = Callable[[Evaluation], Estimate | None]


def measurements_of(evaluations: Mapping[str, Evaluation]) -> list[Measurement]:
    """The table of a page: one row per quantity that at least one of the evaluations has.

    Args:
        evaluations: By the name under which each dictionary is shown.
    """
    rows = []
    for name, definition, unit, headline, read in _ROWS:
        estimates = {shown: estimate for shown, e in evaluations.items() if (estimate := read(e)) is not None}
        if estimates:
            row = Measurement(name=name, definition=definition, unit=unit, headline=headline, estimates=estimates)
            rows.append(row)
    return rows


def cautions_of(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """What a reader should know before quoting a number: what each evaluation noted, and which tokens counted."""
    notes = [f"{name}: {note}" for name, evaluation in evaluations.items() for note in evaluation.notes]
    for name, evaluation in evaluations.items():
        if evaluation.no_loss_because is not None:
            notes.append(f"{name}: the loss was not measured: {evaluation.no_loss_because}.")
    policies = {evaluation.token_policy for evaluation in evaluations.values()}
    notes += [f"Tokens counted: {policy}." for policy in sorted(policies)]
    for evaluation in list(evaluations.values())[:1]:
        notes.append(
            f"Intervals are {100 * evaluation.level:g} % percentile bootstraps over {evaluation.n_documents:,} "
            f"documents; "
            f"“dead” is judged on {evaluation.density.n_tokens:,} tokens, in which a latent of density up to "
            f"{evaluation.density.dead_bound:.1e} can go unseen."
        )
    return notes


def _estimate(measured: object, factor: float = 1.0) -> Estimate | None:
    """An estimate of the evaluation in the unit of the page; a bare number has no interval."""
    if measured is None:
        return None
    if isinstance(measured, int):
        return Estimate(measured)
    if isinstance(measured, float):
        return Estimate(measured * factor)
    value, low, high = (getattr(measured, end) for end in ("value", "low", "high"))
    if low is None or high is None:
        return Estimate(value * factor)
    return Estimate(value * factor, low * factor, high * factor)


def _loss(name: str, factor: float = 1.0) -> Reader:
    return lambda e: None if e.loss is None else _estimate(getattr(e.loss, name), factor)


def _shrinkage(name: str) -> Reader:
    return lambda e: None if e.shrinkage_centred is None else _estimate(getattr(e.shrinkage_centred, name))


_ROWS: list[tuple[str, str, str, bool, Reader]] = [
    (
        "FVU",
        "Fraction of variance unexplained: sum of squared errors over sum of squared distances from the mean, "
        "all tokens "
        "and coordinates together. 0 is perfect, 1 no better than the mean.",
        "",
        True,
        lambda e: _estimate(e.fvu),
    ),
    (
        "L0",
        "Latents that are not 0, mean over tokens.",
        "",
        True,
        lambda e: _estimate(e.l0.mean),
    ),
    (
        "Dead latents",
        "Not active in any of the held-out tokens.",
        "%",
        True,
        lambda e: _estimate(e.density.dead_fraction, 100.0),
    ),
    (
        "Loss added",
        "Next-token loss added by putting the reconstruction in place of the activation, as a share of what "
        "putting the "
        "mean there adds, at the same tokens. 0 is no harm, 100 as bad as knowing nothing of the input.",
        "%",
        True,
        _loss("fraction_of_mean", 100.0),
    ),
    (
        "Loss added, in nats",
        "Next-token loss with the reconstruction in place of the activation, minus the clean loss; per "
        "predicted token.",
        "nats",
        False,
        _loss("added"),
    ),
    (
        "Loss added by the mean",
        "The same with every activation replaced by the mean one.",
        "nats",
        False,
        _loss("added_by_mean"),
    ),
    (
        "Loss added by zero",
        "The same with every activation replaced by zero. At a residual stream this breaks the model, so "
        "shares of it flatter.",
        "nats",
        False,
        _loss("added_by_zero"),
    ),
    (
        "Clean loss",
        "Next-token loss of the untouched model.",
        "nats",
        False,
        _loss("clean"),
    ),
    (
        "KL",
        "Kullback–Leibler divergence from the untouched model’s next-token distribution to that with the "
        "reconstruction.",
        "nats",
        False,
        _loss("kl"),
    ),
    (
        "L0, median",
        "Half of the tokens have at most so many.",
        "",
        False,
        lambda e: _estimate(e.l0.median),
    ),
    (
        "L0, 99th percentile",
        "One token in a hundred has more latents than this.",
        "",
        False,
        lambda e: _estimate(e.l0.p99),
    ),
    (
        "Dense latents",
        "Active in more than a tenth of the tokens.",
        "%",
        False,
        lambda e: _estimate(e.density.dense_fraction, 100.0),
    ),
    (
        "FVU, tokens alike",
        "Mean over tokens of each token’s own share unexplained: tokens of large norm weigh no more than others.",
        "",
        False,
        lambda e: _estimate(e.fvu_token_mean),
    ),
    (
        "FVU without outliers",
        "FVU over the tokens whose norm is at most 10 times the median norm.",
        "",
        False,
        lambda e: _estimate(e.fvu_without_outliers),
    ),
    (
        "FVU, uncentred",
        "Squared error over squared length. Lower than FVU wherever the mean is large; only to compare with others.",
        "",
        False,
        lambda e: _estimate(e.fvu_uncentred),
    ),
    (
        "Cosine, centred",
        "Cosine between activation and reconstruction about the mean, mean over tokens. 1 is perfect.",
        "",
        False,
        lambda e: _estimate(e.cosine_centred),
    ),
    (
        "Relative bias r",
        "E|x̂|² / E⟨x, x̂⟩ about the dictionary’s offset: 1 is unbiased, below 1 is shrunk, above 1 overshoots.",
        "",
        False,
        _shrinkage("r"),
    ),
    (
        "Norm ratio ν",
        "Length of reconstructions over length of activations, about the offset. Below 1 for any imperfect "
        "reconstruction; not in itself shrinkage.",
        "",
        False,
        _shrinkage("nu"),
    ),
]
