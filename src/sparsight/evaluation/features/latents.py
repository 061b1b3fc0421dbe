"""Latents that recover a feature: the best one of each class, and the smallest set that is as good as a probe."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import UndefinedMetric
from sparsight.evaluation.classification import SparseColumns, auroc, best_threshold, detect
from sparsight.evaluation.features.labelled import Examples
from sparsight.evaluation.features.mediation import Exchange, Move, fraction, whole
from sparsight.evaluation.features.probes import SparseProbe, k_sparse, logistic
from sparsight.evaluation.features.report_record import LatentRecord, LatentSetRecord
from sparsight.evaluation.features.scores import Resampling, balanced_accuracy, score
from sparsight.models import Site

KS = (1, 2, 4, 8, 16, 32)
AS_GOOD = 0.95


@dataclass(frozen=True, eq=False)
class Coded:
    """Codes of a feature's examples, dense over the latents in use."""

    dictionary: AbstractDictionary
    name: str
    site: Site
    used: Int64[Tensor, " u"]
    fit: Float[Tensor, "n u"]
    choose: Float[Tensor, "c u"]
    judge: Float[Tensor, "m u"]
    columns: SparseColumns

    @staticmethod
    def of(dictionary: AbstractDictionary, name: str, site: Site, xs: tuple[Tensor, Tensor, Tensor]) -> "Coded":
        """Code activations to fit on, to choose on and to judge on.

        Raises:
            UndefinedMetric: no latent is in use.
        """
        device = dictionary.atoms.device
        codes: list[SparseCode] = []
        with torch.no_grad():
            for x in xs:
                codes.append(dictionary.encode(x.to(device)).to("cpu"))
        active = torch.zeros(dictionary.n_latents, dtype=torch.bool)
        active[codes[0].indices[codes[0].values != 0]] = True
        used = active.nonzero()[:, 0]
        if len(used) == 0:
            raise UndefinedMetric(f"no latent of {name} is in use on these tokens")
        dense = [code.to_dense()[:, used] for code in codes]
        return Coded(dictionary, name, site, used, dense[0], dense[1], dense[2], SparseColumns.of(codes[:1]))


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What the latents of a site are measured against; the same for every dictionary there.

    Attributes:
        accuracy: Balanced accuracy of logistic regression on the activations, on held-out documents.
        choosing: The same on the choosing documents.
        exchange: Pairs of texts; None where there are none.
        full: What exchanging the whole activation costs in each pair.
    """

    accuracy: float
    choosing: float
    exchange: Exchange | None
    full: Tensor | None

    @staticmethod
    def of(xs: tuple[Tensor, Tensor, Tensor], examples: Examples, exchange: Exchange | None) -> "Yardstick":
        """Fit the probe and run the exchange."""
        n = examples.n_classes
        dense = logistic(xs[0], examples.fit.y, n)
        right = [
            float(balanced_accuracy(score(dense, x, part, n).sum(dim=0)))
            for x, part in ((xs[2], examples.judge), (xs[1], examples.choose))
        ]
        return Yardstick(right[0], right[1], exchange, None if exchange is None else exchange.costs(whole))


def best_of_each_class(coded: Coded, examples: Examples) -> list[LatentRecord]:
    """For each class (one of two) the latent of largest AUROC on training documents, judged on held-out ones."""
    found = []
    classes = [1] if examples.n_classes == 2 else range(examples.n_classes)
    for c in classes:
        here, there = examples.fit.y == c, examples.judge.y == c
        scores = coded.columns.auroc(here)
        latent = int(scores.argmax())
        place = int((coded.used == latent).nonzero()[0, 0])
        threshold = best_threshold(coded.fit[:, place], here)
        detected = detect(coded.judge[:, place], there, threshold)
        found.append(
            LatentRecord(
                dictionary=coded.name,
                site=str(coded.site),
                latent=latent,
                feature=examples.feature.name,
                label=examples.feature.classes[examples.kept[c]],
                auroc_train=float(scores[latent]),
                auroc=auroc(coded.judge[:, place], there),
                threshold=threshold,
                f1=detected.f1,
                precision=detected.precision,
                recall=detected.recall,
            )
        )
    return found


def smallest_set(
    coded: Coded,
    examples: Examples,
    yardstick: Yardstick,
    resampling: Resampling,
    no_exchange: str,
    *,
    seed: int = 0,
) -> LatentSetRecord:
    """The fewest latents that tell the classes apart as well as the activations do, and what they mediate.

    Latents are ranked on the examples to fit on; how many are needed is decided on the choosing documents: the largest
    set is tried first, and where it is not enough no smaller one is. All numbers are of held-out documents.
    """
    n = examples.n_classes
    tried = [k for k in KS if k <= len(coded.used)]

    def tell(k: int) -> tuple[SparseProbe, bool]:
        probe = k_sparse(coded.fit, examples.fit.y, n, k)
        right = float(balanced_accuracy(score(probe, coded.choose, examples.choose, n).sum(dim=0)))
        return probe, right >= AS_GOOD * yardstick.choosing

    probe, enough = tell(tried[-1])
    for k in tried[:-1] if enough else ():
        smaller, as_good = tell(k)
        if as_good:
            probe = smaller
            break
    latents = coded.used[probe.columns]
    scores = probe.scores(coded.judge)
    y, answers = examples.judge.y, scores.argmax(dim=1)
    of_class = [c for c in range(n) if 0 < int((y == c).sum()) < len(y)]
    mediated, chance, why = None, None, no_exchange
    exchange, full = yardstick.exchange, yardstick.full
    if exchange is not None and full is not None:
        try:
            mediated = fraction(exchange.costs(exchanged(coded.dictionary, latents)), full, exchange.pairs, resampling)
            chance = _by_chance(coded, examples, latents, exchange, full, seed)
            why = ""
        except UndefinedMetric as error:
            why = str(error)
    return LatentSetRecord(
        dictionary=coded.name,
        site=str(coded.site),
        feature=examples.feature.name,
        latents=latents.tolist(),
        enough=enough,
        accuracy=resampling.of(score(probe, coded.judge, examples.judge, n), balanced_accuracy),
        auroc=sum(auroc(scores[:, c], y == c) for c in of_class) / len(of_class),
        f1=sum(_f1(answers == c, y == c) for c in of_class) / len(of_class),
        dense_accuracy=yardstick.accuracy,
        mediated=mediated,
        mediated_by_random=chance,
        no_mediation=why or None,
    )


def exchanged(dictionary: AbstractDictionary, latents: Int64[Tensor, " k"]) -> Move:
    """Exchange the values of some latents and leave all else, the dictionary's error included, as it is."""

    def move(base: Tensor, source: Tensor, strata: Tensor) -> Tensor:
        values = dictionary.encode(source).to_dense() - dictionary.encode(base).to_dense()
        chosen = latents.to(values.device)
        return base + values[:, chosen] @ dictionary.atoms.detach()[chosen]

    return move


def _by_chance(
    coded: Coded, examples: Examples, latents: Int64[Tensor, " k"], exchange: Exchange, full: Tensor, seed: int
) -> float | None:
    """Mediated fraction of as many other latents in use, drawn at random; None where there are not so many."""
    others = coded.used[~torch.isin(coded.used, latents)]
    if len(others) < len(latents):
        return None
    drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: len(latents)]]
    return float(exchange.costs(exchanged(coded.dictionary, drawn)).sum() / full.sum())


def _f1(answered: Tensor, true: Tensor) -> float:
    return 2 * int((answered & true).sum()) / max(1, int(answered.sum()) + int(true.sum()))


def overlap(coded: Coded, latents: Int64[Tensor, " k"], space: Float[Tensor, "d r"]) -> float:
    """Share of a subspace that lies in the span of some atoms: mean squared cosine, 1 when it is contained in it."""
    q = torch.linalg.qr(coded.dictionary.atoms.detach().cpu().double()[latents].T).Q
    return float((q.T @ space).square().sum() / space.shape[1])
