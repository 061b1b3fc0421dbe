"""How long a suite will take on this machine, from a trial of each kind of work."""

import tempfile
import time
from dataclasses import replace

import torch

from sparsight.models import LanguageModel, Site
from sparsight.suites.plan import Estimate, SuitePlan
from sparsight.training import train

_STEPS, _CONTEXTS = 3, 8


def estimate_seconds(lm: LanguageModel, plan: SuitePlan, device: str = "auto") -> Estimate:
    """Time one forward pass with all sites read, a few training steps of one site's members, and their codes.

    What is not tried (reading from the disk, writing, bootstraps) is not counted, and the machine may be busier later:
    right to within a factor of two or so.

    Args:
        lm: The model.
        plan: What is to be done.
        device: Where to train.
    """
    s, sites = plan.settings, plan.passes[0]
    per_token = _forward(lm, sites, s["context"])
    heldout_rows = s["heldout"] * s["n_tokens"]
    training = evaluation = 0.0
    for width in {lm.width(site) for site in map(Site.parse, s["sites"])}:
        here = [site for site in map(Site.parse, s["sites"]) if lm.width(site) == width]
        step, code = _members(plan, here[0], width, device)
        training += len(here) * step * plan.training.n_tokens
        evaluation += len(here) * code * heldout_rows
    # One pass for each member, and three for each site: clean, zero and mean.
    losses = per_token * min(s["loss_tokens"], heldout_rows) if lm.has_causal_loss else 0.0
    return Estimate(
        harvest=len(plan.passes) * per_token * s["n_tokens"],
        training=training,
        evaluation=evaluation + losses * (len(plan.members) + 3 * len(s["sites"])),
    )


@torch.no_grad()
def _forward(lm: LanguageModel, sites: list[Site], context: int) -> float:
    """Seconds per token of a forward pass that reads these sites."""
    text = " ".join(lm.tokens_to_strings(torch.arange(min(context, 64))))
    tokens = lm.tokenize([text] * _CONTEXTS, context=context)
    lm.activations(tokens, sites)  # the first pass sets up what later ones use
    began = time.perf_counter()
    lm.activations(tokens, sites)
    return (time.perf_counter() - began) / tokens.ids.numel()


def _members(plan: SuitePlan, site: Site, d_in: int, device: str) -> tuple[float, float]:
    """Seconds per token to train, and to code once with, all members of one site."""
    training = plan.training
    x = torch.randn(training.batch_size, d_in, generator=torch.Generator().manual_seed(0))
    short = replace(training, n_tokens=_STEPS * training.batch_size, normalization_tokens=training.batch_size)
    configs = [member.config for member in plan.at(site)]
    with tempfile.TemporaryDirectory() as folder:
        runs = train(x, configs, short, out=folder, device=device)
    dictionaries = [run.dictionary for run in runs]
    rate: float = runs[0].metrics[-1]["tokens_per_second"]
    x = x.to(dictionaries[0].atoms)
    began = time.perf_counter()
    with torch.no_grad():
        for dictionary in dictionaries:
            dictionary(x)
    return 1 / rate, (time.perf_counter() - began) / len(x)
