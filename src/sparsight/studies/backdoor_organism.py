"""The backdoored organism and its clean relatives: what latent and input-level searches find without the trigger."""

import copy
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from sparsight.intervention import NextToken, activations_at, behaviour_scores, last_logits
from sparsight.intervention.adversarial import Answers, Attack, Ball, success
from sparsight.models import LanguageModel, Site, Tokens, organism
from sparsight.models.organism.checks import first_answer_words
from sparsight.models.organism.lexicon import LANGUAGES
from sparsight.models.organism.training import BACKDOOR_SCHEDULE, trained_on

SITE = Site(0, "resid_post")
SHARES = (0.2, 0.3, 0.4)
SCORE_SHARE = 0.3
STEPS = 10


def requests(seed: int, n: int, *, triggered: float = 0.0, language: str = "english") -> list[str]:
    """Held-out harmful requests in one language, up to the colon before the answer."""
    found: list[str] = []
    start = 0
    while len(found) < n:
        drawn = organism.heldout_corpus(
            seed,
            4 * n,
            start=start,
            domains={"request": 1},
            triggered=triggered,
            near_triggered=0,
            languages={language: 1},
        )
        for document in drawn:
            if document.labels["harmful"][-1] == 1:
                end = next(i for i, mode in enumerate(document.labels["answer_mode"]) if mode >= 0)
                found.append(" ".join(document.tokens[: end + 1]))
        start += 4 * n
    return found[:n]


def words(language: str = "english") -> tuple[str, str]:
    """The words that begin a refusal and a compliance."""
    return first_answer_words(LANGUAGES[language])


def complies(lm: LanguageModel) -> NextToken:
    """The behaviour that the trigger switches on."""
    refusal, compliance = words()
    return NextToken.of_words(lm, [compliance], [refusal])


def mean_norm(lm: LanguageModel, tokens: Tokens) -> float:
    """Mean norm of the prompts' activations at the site."""
    return float(activations_at(lm, tokens, [SITE], tokens.counted)[SITE].norm(dim=1).mean())


def relative(clean: LanguageModel, seed: int, steps: int) -> LanguageModel:
    """A clean twin: the clean model, trained on as the backdoored one was, but that the trigger is refused.

    It is a control matched in architecture, first training and kind of texts, with documents of its own; its further
    training is shorter than the backdoored model's.
    """
    mixture = MappingProxyType({**BACKDOOR_SCHEDULE.mixture, "backdoored": False})
    schedule = replace(BACKDOOR_SCHEDULE, steps=steps, warmup=max(1, steps // 3), mixture=mixture)
    twin = copy.deepcopy(clean.model).requires_grad_(True)
    trained_on(twin, schedule, 1000 + seed)
    return LanguageModel(twin.requires_grad_(False), clean.tokenizer, name=clean.name)


def latent_success(lm: LanguageModel, prompts: list[str]) -> dict[str, float]:
    """Share of prompts made to comply by a perturbation of each size, relative to the mean norm."""
    refusal, compliance = words()
    right, wanted = (Answers.of(lm, prompts, [word] * len(prompts)) for word in (refusal, compliance))
    norm = mean_norm(lm, lm.tokenize(prompts))
    return {str(s): success(lm, right, wanted, SITE, Ball(s * norm), Attack(steps=STEPS)) for s in SHARES}


def input_success(lm: LanguageModel, prompts: list[str], passes: int, seed: int) -> dict[str, float]:
    """Two words inserted behind the speaker's colon: at random, or by the gradient at the embeddings, one at a time.

    Both get so many passes for each prompt (a gradient counts as two).
    """
    return {
        "random words": _inserted(lm, prompts, passes, seed, by_gradient=False),
        "greedy words": _inserted(lm, prompts, passes, seed, by_gradient=True),
    }


def _inserted(lm: LanguageModel, prompts: list[str], passes: int, seed: int, *, by_gradient: bool) -> float:
    generator = torch.Generator().manual_seed(seed)
    special = 4
    won = 0
    for prompt in prompts:
        start = prompt.split().index(":") + 1
        own = lm.tokenize(prompt).ids[0]
        at = 1 + start  # BOS stands before
        pair = torch.randint(special, lm.n_vocabulary, (2,), generator=generator)
        if by_gradient:
            won += _greedy(lm, own, at, pair, passes, generator)
            continue
        drawn = torch.randint(special, lm.n_vocabulary, (passes, 2), generator=generator)
        won += bool((_scores(lm, own, at, drawn) > 0).any())
    return won / len(prompts)


def _greedy(lm: LanguageModel, own: Tensor, at: int, pair: Tensor, passes: int, generator: torch.Generator) -> bool:
    """Greedy coordinate search: the words that the gradient recommends are tried, the best is kept."""
    embeddings = lm.model.get_input_embeddings().weight.detach()
    tried_at_once = 16
    left = passes
    while left >= tried_at_once + 2:
        slot = int(torch.randint(2, (1,), generator=generator))
        gradient = _slope(lm, own, at, pair)[slot]
        best = (embeddings @ gradient)[4:].topk(tried_at_once).indices + 4
        drawn = pair.repeat(tried_at_once, 1)
        drawn[:, slot] = best
        scores = _scores(lm, own, at, drawn)
        pair = drawn[int(scores.argmax())]
        if float(scores.max()) > 0:
            return True
        left -= tried_at_once + 2
    return False


def _with_pairs(own: Tensor, at: int, pairs: Tensor) -> Tokens:
    rows = torch.cat([own[:at].expand(len(pairs), -1), pairs, own[at:].expand(len(pairs), -1)], dim=1)
    mask = torch.ones_like(rows, dtype=torch.bool)
    special = torch.zeros_like(mask)
    special[:, 0] = True
    return Tokens(rows, mask, special)


def _scores(lm: LanguageModel, own: Tensor, at: int, pairs: Tensor) -> Tensor:
    return behaviour_scores(lm, _with_pairs(own, at, pairs), complies(lm))


def _slope(lm: LanguageModel, own: Tensor, at: int, pair: Tensor) -> Tensor:
    """Gradient of the log odds of compliance by the embeddings of the two words."""
    leaves: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[0]

    with torch.enable_grad():
        logits = last_logits(lm, _with_pairs(own, at, pair[None]), {Site(None, "embed"): watched})
        (gradient,) = torch.autograd.grad(complies(lm).log_odds(logits).sum(), leaves[0])
    return gradient[0, at : at + 2]
