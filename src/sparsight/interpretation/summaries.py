"""One dictionary and one store in; everything a page shows of its latents out."""

from collections.abc import Sequence
from typing import Any

import torch

from sparsight.interpretation.directions import DirectEffect, direct_effects, nearest_latents
from sparsight.interpretation.examples import top_contexts
from sparsight.interpretation.page import DictionaryPage, FeatureMatch, LatentSummary
from sparsight.interpretation.reading import Encodes, StoredActivations, site_of
from sparsight.interpretation.selection import PickedLatents, pick_latents
from sparsight.interpretation.statistics import latent_statistics, value_histograms
from sparsight.models import LanguageModel, Site

RESIDUAL = frozenset({"embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"})
"""Sites whose directions live in the residual stream, which the unembedding reads."""


TELLING = 0.75
"""AUROC from which the best latent of a labelled feature is worth showing: below, it is the best of many poor ones."""


def summarise(
    dictionary: Encodes,
    store: StoredActivations,
    lm: LanguageModel,
    *,
    name: str,
    description: str,
    matches: Sequence[FeatureMatch] = (),
    n_best: int = 50,
    n_random: int = 50,
    n_contexts: int = 8,
    window: int = 24,
    seed: int = 0,
) -> DictionaryPage:
    """Pick latents worth a look, and gather all that a page shows of each.

    Three passes over the store: statistics of all latents, histograms of the picked ones, their contexts.

    Args:
        dictionary: Codes the activations.
        store: Text that the dictionary was not trained on: `store.split("heldout")`.
        lm: Model the activations came from; its tokenizer writes the contexts, its unembedding gives direct effects.
        name: Short name on the page.
        description: A line about the dictionary.
        matches: Best latents of labelled features; those that tell their feature apart well enough are shown as well.
        n_best, n_random: See `pick_latents`.
        n_contexts, window: See `top_contexts`.
        seed: Of the random latents.
    Returns:
        What `write_report` shows of this dictionary.
    """
    statistics = latent_statistics(dictionary, store)
    picked = pick_latents(statistics, n_best=n_best, n_random=n_random, seed=seed)
    telling = [match for match in matches if match.auroc >= TELLING]
    latents = sorted({*picked.all, *(match.latent for match in telling)})
    histograms = value_histograms(dictionary, store, latents, statistics)
    strings = lm.tokens_to_strings
    contexts = top_contexts(dictionary, store, latents, tokens_to_strings=strings, n_contexts=n_contexts, window=window)
    effects = _direct_effects(dictionary, lm, site_of(dictionary, store), latents)
    nearest = nearest_latents(dictionary.atoms, latents)
    summaries = [
        LatentSummary(
            latent=latent,
            groups=_groups(latent, picked, telling),
            density=float(statistics.density[latent]),
            maximum=float(statistics.maximum[latent]),
            energy_share=float(statistics.energy_share[latent]),
            histogram=histograms[latent],
            contexts=contexts[latent],
            promoted=_named(effects[latent].promoted, lm) if latent in effects else [],
            suppressed=_named(effects[latent].suppressed, lm)[:4] if latent in effects else [],
            nearest=nearest[latent],
            matches=[match for match in matches if match.latent == latent],
        )
        for latent in latents
    ]
    return DictionaryPage(
        name=name,
        description=description,
        n_latents=dictionary.n_latents,
        n_tokens=len(store),
        latents=summaries,
        matches=list(matches),
    )


def _groups(latent: int, picked: PickedLatents, matches: Sequence[FeatureMatch]) -> tuple[str, ...]:
    member = {
        "best": latent in picked.best,
        "random": latent in picked.random,
        "label": any(match.latent == latent for match in matches),
    }
    return tuple(group for group, inside in member.items() if inside)


def _direct_effects(
    dictionary: Encodes, lm: LanguageModel, site: Site, latents: Sequence[int]
) -> dict[int, DirectEffect]:
    """Direct effects where they are defined: residual sites of a model that predicts tokens; else none."""
    head = _unembedding(lm)
    if site.kind not in RESIDUAL or head is None or head.shape[1] != dictionary.atoms.shape[1]:
        return {}
    return direct_effects(dictionary.atoms.detach().cpu(), head.detach().cpu().float(), latents)


def _unembedding(lm: Any) -> torch.Tensor | None:
    """The rows that turn the residual stream into logits; None for a model without a next-token loss."""
    if not lm.has_causal_loss:
        return None
    head = lm.model.get_output_embeddings()
    return None if head is None else head.weight


def _named(effects: list[tuple[int, float]], lm: LanguageModel) -> list[tuple[str, float]]:
    names = lm.tokens_to_strings(torch.tensor([token for token, _ in effects]))
    return [(name, amount) for name, (_, amount) in zip(names, effects, strict=True)]
