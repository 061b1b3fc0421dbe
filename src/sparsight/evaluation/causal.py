"""Whose codes predict better what removing an atom does to the model: the encoder's or a pursuit's?"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsight.coding import gradient_pursuit
from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import ModelError
from sparsight.evaluation.ablation import DOSES, Encode, Pairs, Sampler, measure
from sparsight.evaluation.agreement import Resamples, pearson, slope, spearman
from sparsight.evaluation.causal_record import Agreement as Agreement
from sparsight.evaluation.causal_record import CausalPrediction as CausalPrediction
from sparsight.evaluation.causal_record import CoderRecord as CoderRecord
from sparsight.evaluation.causal_record import RankDifference as RankDifference
from sparsight.evaluation.coders import describe
from sparsight.evaluation.reading import (
    Predicts,
    StoredActivations,
    check_model,
    part_of,
    row_blocks,
    site_for,
)
from sparsight.models import Site

MEAN_TOKENS = 16_384  # on which the mean activation is taken


def causal_prediction(
    lm: Predicts,
    dictionary: AbstractDictionary,
    store: StoredActivations,
    *,
    coders: Mapping[str, Encode] | None = None,
    dose: str = "projection",
    k: int | None = None,
    n_tokens: int = 400,
    latents_per_token: int = 4,
    tokens_per_context: int = 4,
    split: str = "heldout",
    site: Site | str | None = None,
    batch_size: int = 32,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    force: bool = False,
    progress: bool = False,
) -> CausalPrediction:
    """Remove atoms from single activations and ask whose latent values foretell what happens.

    If each coder removed its own `z_j d_j`, each would be right about its own experiment. So the experiment does not
    know the coders: at a sampled token the activation loses either its whole component along `d_j` about the mean
    (`dose="projection"`), or one constant amount of `d_j` (`dose="constant"`), and the effect is measured on all
    predictions of the context from that token on. Then, over (token, latent) pairs, every coder's values are compared
    with the effects: the value `z_j` with the effect's size, and the first-order prediction `-z_j <gradient, d_j>` with
    the change of loss. A coder that calls a latent silent predicts no effect: 0.

    Limits. The projection counts what correlated atoms have along `d_j` too, as a one-shot linear read-out does and a
    pursuit does not: it leans towards encoders. How far shows in the coder named `projection`, which is the dose itself
    and always reported. The constant dose leans towards nobody, but asks only where the model is sensitive to `d_j`; in
    a model that reads linearly no value predicts that. Where both doses prefer one coder the answer is safe; else it
    is about the dose. Atoms come from the dictionary: they suit the coder it was trained with. Pairs are drawn from the
    union of the coders' supports, so figures of different sets of coders do not compare.

    Args:
        lm: A model with a next-token loss, differentiable in its activations.
        dictionary: Over whose atoms the coders write.
        store: Contexts of the model.
        coders: Functions of raw activations by name. Default: `encoder`, the dictionary's own code, and `pursuit`,
            gradient pursuit over the same atoms with `k` steps.
        dose: How much of the atom is removed.
        k: Steps of the default pursuit. Default: mean L0 of the own code on the tokens that give the mean, rounded.
        n_tokens: About how many tokens to sample.
        latents_per_token: Latents drawn at each, at most.
        tokens_per_context: Tokens drawn in each context, at most: contexts are spread evenly over the store.
        split: `"heldout"`, `"train"` or `"all"`.
        site: Where, if not at the dictionary's own site.
        batch_size: Contexts in one forward pass.
        n_resamples, level, seed: Of the bootstrap over documents; the seed also of the sample.
        force: Use a dictionary of another site or model.
        progress: Show a bar on stderr.
    Raises:
        ValueError: an argument is out of its range.
        DataError: dictionary, model and store do not belong together.
        ModelError: the model has no next-token loss.
        UndefinedMetric: too few documents, or predictions or effects that do not vary.
    Source:
        Our definition. The question is Smith's ("does inference-time optimisation find what the model uses?").
    """
    _check(lm, dose, n_tokens, latents_per_token, tokens_per_context)
    part = part_of(store, split)
    where = site_for(dictionary, part, site, force=force)
    check_model(lm, part, force=force)
    mean, own_l0 = _mean_and_l0(dictionary, part, where)
    k = max(1, round(own_l0)) if k is None else k
    named = _coders(dictionary, coders, k)
    sampler = Sampler(dictionary, named, mean, latents_per_token, tokens_per_context, seed)
    pairs = measure(lm, part, where, sampler, dose, n_tokens, batch_size, progress)
    draws = Resamples(pairs.documents, n_resamples=n_resamples, level=level, seed=seed)
    return CausalPrediction(
        dictionary=describe(dictionary),
        site=str(where),
        model=lm.name,
        split=split,
        dose=dose,
        k=k,
        n_pairs=len(pairs.documents),
        n_documents=draws.n_documents,
        mean_size=float(pairs.size.mean()),
        coders=[_coder_record(name, z, pairs, draws) for name, z in pairs.values.items()],
        differences=_differences(pairs, draws),
    )


def _check(lm: Predicts, dose: str, *at_least_one: int) -> None:
    if dose not in DOSES:
        raise ValueError(f"dose must be 'projection' or 'constant', got {dose!r}")
    if min(at_least_one) < 1:
        raise ValueError("n_tokens, latents_per_token and tokens_per_context must all be at least 1")
    if not lm.has_causal_loss:
        raise ModelError(f"{lm.name} ({lm.family}) has no causal loss, so there is no effect to predict")


def _coders(dictionary: AbstractDictionary, coders: Mapping[str, Encode] | None, k: int) -> Mapping[str, Encode]:
    """The coders asked for; the dictionary's own and a pursuit by default."""
    if coders is None:
        return {
            "encoder": dictionary.encode,
            "pursuit": lambda x: gradient_pursuit(x - dictionary.b_dec, dictionary.atoms, k),
        }
    if "projection" in coders or not coders:
        raise ValueError("coders must name at least one coder, and none 'projection': that one is always there")
    return coders


def _mean_and_l0(
    dictionary: AbstractDictionary, part: StoredActivations, site: Site
) -> tuple[Float[Tensor, " d"], float]:
    total, active, n = torch.zeros(dictionary.d_in, dtype=torch.float64), 0.0, 0
    for block in row_blocks(len(part), 2048, MEAN_TOKENS):
        x = part.rows(site, block)
        total += x.double().sum(dim=0).cpu()
        with torch.no_grad():
            active += float(dictionary.encode(x.to(dictionary.atoms)).l0().sum())
        n += len(x)
    return (total / n).to(dictionary.atoms), active / n


def _coder_record(name: str, z: Float64[Tensor, " p"], pairs: Pairs, draws: Resamples) -> CoderRecord:
    def agreement(predicted: Tensor, measured: Tensor) -> Agreement:
        return Agreement(
            spearman=draws.estimate(lambda weights: spearman(predicted, measured, weights)),
            pearson=draws.estimate(lambda weights: pearson(predicted, measured, weights)),
            slope=draws.estimate(lambda weights: slope(predicted, measured, weights)),
        )

    return CoderRecord(
        coder=name,
        active=float((z > 0).double().mean()),
        size=agreement(z, pairs.size),
        loss=agreement(z * pairs.first_order, pairs.loss),
    )


def _differences(pairs: Pairs, draws: Resamples) -> list[RankDifference]:
    """Every two coders, in the order in which they came."""
    names = list(pairs.values)
    found = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            a, b, u = pairs.values[first], pairs.values[second], pairs.first_order

            def size(weights: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
                return spearman(a, pairs.size, weights) - spearman(b, pairs.size, weights)

            def loss(weights: Tensor, a: Tensor = a * u, b: Tensor = b * u) -> Tensor:
                return spearman(a, pairs.loss, weights) - spearman(b, pairs.loss, weights)

            found.append(
                RankDifference(first=first, second=second, size=draws.estimate(size), loss=draws.estimate(loss))
            )
    return found
