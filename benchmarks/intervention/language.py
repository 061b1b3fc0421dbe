"""Language on the organism: clamping one latent of a trained dictionary makes continuations change language.

The latent is chosen on training documents by what clamping it does; figures are of held-out ones.

    python benchmarks/intervention/language.py DICTIONARY      # a folder from `sparsight train` or `sparsight demo`
"""

import argparse
from pathlib import Path

import torch

from sparsight.errors import UndefinedMetric
from sparsight.formats import load_dictionary
from sparsight.intervention import difference_in_means, steer, words_score
from sparsight.intervention.steering import largest_value
from sparsight.models import load_model, organism
from sparsight.models.organism.lexicon import exclusive_words

DOMAINS = dict.fromkeys(("plain", "biography", "review", "quotes", "request"), 1)


def beginnings(source, seed, n, language):
    """The first four words of documents in one language."""
    drawn = source(seed, n, domains=DOMAINS, languages={language: 1}, triggered=0, near_triggered=0)
    return [" ".join(document.tokens[:4]) for document in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dictionary", type=Path)
    parser.add_argument("--candidates", type=int, default=6)
    parser.add_argument("--latent", type=int, help="Take this one, at its largest value, instead of choosing.")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--controls", type=int, default=3)
    parser.add_argument("--target", choices=("english", "french", "german", "all"), default="all")
    options = parser.parse_args()
    lm, dictionary = load_model("organism", device="cpu"), load_dictionary(options.dictionary)
    site, words = dictionary.site, exclusive_words()
    texts = {language: [d.text for d in organism.corpus(21, 150, languages={language: 1})] for language in words}
    x = {}
    for language, documents in texts.items():
        tokens = lm.tokenize(documents)
        with torch.no_grad():
            x[language] = lm.activations(tokens, [site])[site][tokens.counted]
    neutral = [d.text for d in organism.corpus(23, 60)]
    everything = torch.cat(list(x.values()))
    test_neutral = [d.text for d in organism.heldout_corpus(24, 100)]
    print(f"{dictionary.config.run_name} at {site}")
    for target in tuple(words) if options.target == "all" else (options.target,):
        start = "german" if target == "english" else "english"
        score = words_score(
            sorted(words[target]), sorted({w for other in words if other != target for w in words[other]})
        )
        others = torch.cat([x[language] for language in words if language != target])
        wanted = difference_in_means(x[target], others)
        # Atoms along the difference in means, whose latents are active at all.
        with torch.no_grad():
            used = (dictionary.encode(others[:20_000]).to_dense() > 0).any(dim=0) | (
                dictionary.encode(x[target][:20_000]).to_dense() > 0
            ).any(dim=0)
        along = (dictionary.atoms.detach() @ wanted.unit).masked_fill(~used, -1)
        best = None
        candidates = along.topk(options.candidates).indices.tolist() if options.latent is None else []
        for latent in candidates:
            chosen_on = beginnings(organism.corpus, 25, 30, start), neutral
            try:
                unit = largest_value(dictionary, everything, latent)
                found = _steered(lm, dictionary, latent, *chosen_on, score, unit)
            except UndefinedMetric:  # silent on the neutral text, where its cost is to be measured
                continue
            dose = found.best(0.9) or max(found.doses, key=lambda d: d.behaviour)
            key = (dose.behaviour >= 0.9, -dose.loss if dose.behaviour >= 0.9 else dose.behaviour)
            if best is None or key > best[0]:
                best = (key, latent, dose)
            print(
                f"  tried latent {latent}: cosine {float(along[latent]):.2f}, {dose.behaviour:.0%} at a value of "
                f"{dose.value:.0f}, loss {dose.loss_added:+.1%}"
            )
        if best is None:
            latent, chosen = options.latent, largest_value(dictionary, everything, options.latent)
        else:
            latent, chosen = best[1], best[2].value
        held = beginnings(organism.heldout_corpus, 26, options.prompts, start)
        values = [share * chosen for share in (0.0, 0.5, 1.0, 2.0)]
        result = _steered(lm, dictionary, latent, held, test_neutral, score, 1.0, values, options.controls)
        share = chosen / largest_value(dictionary, everything, latent)
        print(f"\nfrom {start} to {target}: latent {latent} at {chosen:.0f}, {share:.2g} times its largest value")
        print(result.to_table())
        length = steer(
            lm,
            wanted,
            beginnings(organism.heldout_corpus, 26, options.prompts, start),
            test_neutral,
            score,
            [2.0, 4.0],
            site=site,
        )
        print(f"for comparison, the difference in means:\n{length.to_table()}\n")


def _steered(lm, dictionary, latent, prompts, neutral, score, unit, strengths=(0.5, 0.7, 1.0, 2.0, 4.0), controls=0):
    """`steer` at multiples of a unit that does not depend on the neutral text, on which the latent may be rare."""
    tokens = lm.tokenize(neutral)
    with torch.no_grad():
        x = lm.activations(tokens, [dictionary.site])[dictionary.site][tokens.counted]
    own = largest_value(dictionary, x, latent)
    values = [strength * unit / own for strength in strengths]
    return steer(lm, dictionary, prompts, neutral, score, values, latent=latent, n_controls=controls)


if __name__ == "__main__":
    main()
