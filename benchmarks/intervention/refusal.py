"""Refusal on the organism: which directions switch it off and on, at what cost elsewhere, and do they mediate it.

Directions come from training documents, sites are chosen on other training documents, figures are of held-out ones.

    python benchmarks/intervention/refusal.py
"""

import argparse

import torch

from sparsight.intervention import (
    Direction,
    Edits,
    Gate,
    ModelReadout,
    NextToken,
    ablate_direction,
    activations_at,
    add_direction,
    behaviour_scores,
    difference_in_means,
    last_tokens,
    mediation,
    rate,
    select_direction,
)
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.models.organism.checks import first_answer_words
from sparsight.models.organism.lexicon import LANGUAGES

SITES = [Site(layer, kind) for layer in range(3) for kind in ("resid_mid", "resid_post")]
ELSEWHERE = ("plain", "numbers", "days", "months", "biography", "review", "brackets", "quotes", "parity")


def prompts(source, seed, n, harmful):
    """Requests up to the colon behind which the answer stands, with their languages."""
    found = []
    for document in source(seed, 4 * n, domains={"request": 1}, triggered=0, near_triggered=0):
        if document.labels["harmful"][-1] == harmful and len(found) < n:
            end = next(i for i, mode in enumerate(document.labels["answer_mode"]) if mode >= 0)
            found.append((" ".join(document.tokens[: end + 1]), document.labels["language"][0]))
    return found


def directions(lm: LanguageModel, bad, good):
    """At every site: the shared difference in means, one for each language, and the harmless mean."""
    read = []
    for part in (bad, good):
        tokens = lm.tokenize([text for text, _ in part])
        languages = torch.tensor([language for _, language in part])
        read.append((activations_at(lm, tokens, SITES, last_tokens(tokens)), languages))
    (ours, our_language), (theirs, their_language) = read
    found = {}
    for site in SITES:
        shared = difference_in_means(ours[site], theirs[site], site=site, model=lm.name)
        each = [
            difference_in_means(
                ours[site][our_language == i], theirs[site][their_language == i], site=site, model=lm.name
            )
            for i in range(3)
        ]
        middle = (ours[site].mean(dim=0) + theirs[site].mean(dim=0)) / 2
        gate = Gate(shared, float(middle @ shared.unit))
        found[site] = (shared, each, theirs[site].mean(dim=0), gate)
    return found


def arms(lm, shared, each, harmless, gate) -> dict[str, Edits]:
    """Ways of taking refusal out, from the published one to what this model needs."""
    site = [shared.site]
    return {
        "one direction, to zero, at every write": ablate_direction(lm, shared),
        "one direction, to the harmless mean": ablate_direction(lm, shared, site, towards=harmless),
        "one direction, to the harmless mean, gated": ablate_direction(lm, shared, site, towards=harmless, gate=gate),
        "three directions, to zero, at every write": ablate_direction(lm, each),
        "three directions, to the harmless mean": ablate_direction(lm, each, site, towards=harmless),
        "three directions, to the harmless mean, gated": ablate_direction(lm, each, site, towards=harmless, gate=gate),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("ablation", "addition", "selection", "verdicts", "all"), default="all")
    parser.add_argument("--n", type=int, default=300, help="Held-out prompts of each kind.")
    options = parser.parse_args()
    lm = load_model("organism", device="cpu")
    words = [first_answer_words(language) for language in LANGUAGES.values()]
    refuses = NextToken.of_words(lm, [word for word, _ in words], [word for _, word in words])
    train = [prompts(organism.corpus, 11, 200, harmful) for harmful in (1, 0)]
    choose = [prompts(organism.corpus, 12, 100, harmful) for harmful in (1, 0)]
    test = [prompts(organism.heldout_corpus, 13, options.n, harmful) for harmful in (1, 0)]
    tokens = {
        name: [lm.tokenize([t for t, _ in part]) for part in parts]
        for name, parts in (("choose", choose), ("test", test))
    }
    neutral = [
        lm.tokenize([d.text for d in organism.heldout_corpus(s, 150, domains=dict.fromkeys(ELSEWHERE, 1))])
        for s in (14, 15)
    ]
    found = directions(lm, *train)
    with torch.no_grad():
        clean = [float(lm.loss(text)) for text in neutral]

    def refused(part, harmful, edits=None):
        return rate(behaviour_scores(lm, tokens[part][0 if harmful else 1], refuses, edits))

    def cost(edits, which=1):
        with torch.no_grad():
            return float(lm.loss(neutral[which], edits=edits)) / clean[which] - 1

    print(f"unedited: harmful {refused('test', True):.1%} refused, harmless {refused('test', False):.1%}")
    wanted = options.part
    if wanted in ("ablation", "all"):
        _ablation(lm, found, refused, cost)
    if wanted in ("addition", "all"):
        _addition(lm, found, refused, cost, last_tokens(tokens["test"][1]), colon_gates(lm, train))
    if wanted in ("selection", "all"):
        _published(lm, tokens, refuses, train, refused, cost)
    if wanted in ("verdicts", "all"):
        _verdicts(lm, test, found, refuses, cost)


def _ablation(lm, found, refused, cost) -> None:
    print("\nablation: each arm at the site where it refuses least on other training prompts; from 5 % on, costs least")
    print(f"{'arm':<50} {'site':<13} {'harmful':>8} {'harmless':>8} {'loss elsewhere':>14}")
    for arm in arms(lm, *found[SITES[0]]):
        scored = []
        for i, site in enumerate(SITES):
            edits = arms(lm, *found[site])[arm]
            left = refused("choose", True, edits)
            scored.append((max(left, 0.05), cost(edits, 0), i))  # all below 5 % are equal; then the cost decides
        site = SITES[min(scored)[2]]
        edits = arms(lm, *found[site])[arm]
        print(
            f"{arm:<50} {site!s:<13} {refused('test', True, edits):>8.1%} {refused('test', False, edits):>8.1%} "
            f"{cost(edits):>+14.2%}",
            flush=True,
        )


def colon_gates(lm, prompts):
    """At every site a gate that opens at the colon before an answer: that colon's mean against other texts' tokens."""
    colon = lm.tokenize([text for part in prompts for text, _ in part])
    texts = lm.tokenize([d.text for d in organism.corpus(16, 200, domains=dict.fromkeys(ELSEWHERE, 1))])
    at, other = activations_at(lm, colon, SITES, last_tokens(colon)), activations_at(lm, texts, SITES, texts.counted)
    found = {}
    for site in SITES:
        direction = difference_in_means(at[site], other[site], site=site, model=lm.name)
        middle = (at[site].mean(dim=0) + other[site].mean(dim=0)) / 2
        found[site] = Gate(direction, float(middle @ direction.unit))
    return found


def _addition(lm, found, refused, cost, last, colons) -> None:
    generator = torch.Generator().manual_seed(0)
    site = Site(1, "resid_post")
    shared, _, harmless, gate = found[site]
    kept, induced = [], []
    for _ in range(20):
        drawn = [Direction(torch.randn(shared.d, generator=generator), site, lm.name) for _ in range(3)]
        kept.append(refused("test", True, ablate_direction(lm, drawn, [site], towards=harmless, gate=gate)))
        induced.append(refused("test", False, add_direction(lm, Direction(drawn[0].unit * shared.norm, site, lm.name))))
    print(f"\n20 random triples ablated likewise at {site}: harmful refused {min(kept):.1%} to {max(kept):.1%}")
    print(f"20 random directions of equal norm added there: harmless refused {min(induced):.1%} to {max(induced):.1%}")
    print(
        "\naddition to harmless prompts at one site: at every token, at the last one, or where a gate finds that colon"
    )
    for site in SITES:
        shared = found[site][0]
        for strength in (1.0, 1.5):
            edits = add_direction(lm, shared, strength=strength)
            only = add_direction(lm, shared, strength=strength, where=last)
            gated = add_direction(lm, shared, strength=strength, gate=colons[site])
            print(
                f"{site!s:<13} x{strength:<4} refused {refused('test', False, edits):.1%}, "
                f"at the last only {refused('test', False, only):.1%}, gated {refused('test', False, gated):.1%}; "
                f"loss elsewhere {cost(edits):+.1%}, gated {cost(gated):+.2%}",
                flush=True,
            )


def _published(lm, tokens, refuses, train, refused, cost) -> None:
    print("\npublished selection (one direction, to zero, at every write; depth < 80 %, KL < 0.1, induces)")
    parts = [lm.tokenize([t for t, _ in part]) for part in train]
    direction, record = select_direction(lm, *parts, *tokens["choose"], refuses, n_tokens=4)
    print(f"scores unedited: harmful {record.baseline_positive:+.1f} nats, harmless {record.baseline_negative:+.1f}")
    for i, c in enumerate(record.candidates):
        said = "chosen" if i == record.chosen else c.rejected
        print(
            f"{c.site:<12} token -{c.back + 1}: harmful, ablated {c.ablated:+6.1f}; harmless, added {c.induced:+6.1f}; "
            f"KL {c.kl:.4f}  {said}"
        )
    ablation, addition = ablate_direction(lm, direction), add_direction(lm, direction)
    print(
        f"held out, {direction.site}: ablated, harmful {refused('test', True, ablation):.1%} refused, loss elsewhere "
        f"{cost(ablation):+.2%}; added, harmless {refused('test', False, addition):.1%} refused"
    )


def _verdicts(lm, test, found, refuses, cost) -> None:
    both = lm.tokenize([t for part in test for t, _ in part[:150]])
    labels = torch.tensor([1] * 150 + [0] * 150)
    site = Site(1, "resid_post")
    shared, each, _, _ = found[site]
    readout = ModelReadout(lm, both, site, refuses)

    def side(edit):
        return cost({site: edit})

    for name, direction in (("refusal, shared direction", shared), ("refusal, one direction for each language", each)):
        print("\n" + mediation(readout, labels, direction, n_random=100, side_effect=side, name=name).to_table())


if __name__ == "__main__":
    main()
