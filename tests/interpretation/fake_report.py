"""A whole report with made-up content, for tests of the page itself."""

import random

from sparsight.interpretation import (
    DictionaryPage,
    Estimate,
    Example,
    FeatureMatch,
    Figure,
    LatentSummary,
    Measurement,
    ReportPage,
)
from sparsight.interpretation.figures import Series, line_chart

TEXT = "the river that we crossed on monday was wider than any of us had hoped and der Fluss war kalt"
WORDS = TEXT.split(" ")
HOSTILE = '<script>document.title="owned"</script>'


def fake_example(rng: random.Random, peak_token: str, maximum: float) -> Example:
    n, peak = rng.randint(18, 49), rng.randint(0, 17)
    tokens = [rng.choice(WORDS) for _ in range(n)]
    values = [maximum * rng.random() ** 2 if rng.random() < 0.15 else 0.0 for _ in range(n)]
    tokens[peak], values[peak] = peak_token, maximum * rng.uniform(0.6, 1)
    return Example(
        tuple(tokens), tuple(values), peak, rng.randint(0, 999), peak, rng.random() < 0.5, rng.random() < 0.5
    )


def fake_dictionary(name: str, n_shown: int, seed: int) -> DictionaryPage:
    rng = random.Random(seed)
    latents = sorted({*rng.sample(range(1024), n_shown - 1), 17})
    matches = [
        FeatureMatch(
            feature=feature, label=label, latent=rng.choice(latents), auroc=rng.uniform(0.7, 1), f1=rng.uniform(0.3, 1),
            n_positive=rng.randint(100, 9000), n=20_000,
        )
        for feature, label in [("language", "french"), ("language", "german"), ("day", "monday"), ("harmful", "")]
    ]  # fmt: skip
    summaries = [
        LatentSummary(
            latent=latent,
            groups=tuple(g for g, chance in (("best", 0.5), ("random", 0.6)) if rng.random() < chance) or ("label",),
            density=10 ** rng.uniform(-4, -1),
            maximum=12.5,
            energy_share=rng.random() / 50,
            histogram=[int(800 / (i + 1) ** 1.5) for i in range(24)],
            contexts=[fake_example(rng, HOSTILE if latent == 17 else f"peak{latent}", 12.5) for _ in range(8)],
            promoted=[(rng.choice(WORDS), rng.random()) for _ in range(8)],
            suppressed=[(HOSTILE if latent == 17 else rng.choice(WORDS), -rng.random()) for _ in range(5)],
            nearest=[(other, rng.random()) for other in rng.sample(latents, min(4, len(latents)))],
            matches=[m for m in matches if m.latent == latent],
        )
        for latent in latents
    ]
    return DictionaryPage(
        name=name,
        description="1,024 latents, L0 16",
        n_latents=1024,
        n_tokens=40_000,
        latents=summaries,
        matches=matches,
    )


def fake_report(n_shown: int = 12) -> ReportPage:
    tokens = [i * 2e4 for i in range(1, 60)]
    training = [
        Series(name=name, x=tokens, y=[0.08 + 0.6 / (1 + i + slot) for i in range(59)], slot=slot)
        for slot, name in enumerate(("TopK", "JumpReLU"))
    ]
    ks = [2.0, 4.0, 8.0, 16.0, 32.0]
    coders = [
        Series(
            name=name, x=ks, y=[(0.5 - 0.08 * slot) / k**0.7 for k in ks], slot=slot, marks=True,
            low=[(0.47 - 0.08 * slot) / k**0.7 for k in ks], high=[(0.53 - 0.08 * slot) / k**0.7 for k in ks],
        )
        for slot, name in enumerate(("encoder", "encoder top-k + refit", "gradient pursuit"))
    ]  # fmt: skip
    edges = [-5 + i / 4 for i in range(20)]
    density = [
        Series(name=name, x=edges, y=[int(200 * 2 ** -((e + 2 + slot / 3) ** 2)) for e in edges], slot=slot, steps=True)
        for slot, name in enumerate(("TopK", "JumpReLU"))
    ]
    curves = line_chart(training, x_label="tokens", y_label="FVU", y_log=True)
    histogram = line_chart(density, x_label="log₁₀ density", y_label="latents")
    fronts = line_chart(coders, x_label="L0", y_label="FVU", x_log=True, x_ticks=ks)
    return ReportPage(
        title="Two dictionaries of the residual stream",
        lead=f"Made-up content for tests of the page. {HOSTILE}",
        facts={"Model": "made-up", "Site": "2.resid_post", "Command": "sparsight demo --out x", "Seed": "0"},
        measurements=[
            Measurement(
                name="FVU", definition="Fraction of variance unexplained, 0 is perfect.", unit="", headline=True,
                estimates={"TopK": Estimate(0.0831, 0.0802, 0.0862), "JumpReLU": Estimate(0.0912, 0.0881, 0.0954)},
            ),
            Measurement(
                name="L0", definition="Mean number of active latents.", unit="", headline=True,
                estimates={"TopK": Estimate(16.0), "JumpReLU": Estimate(15.63, 15.5, 15.8)},
            ),
            Measurement(
                name="Dead latents", definition="Not active in any held-out token.", unit="%", headline=True,
                estimates={"TopK": Estimate(3.125)},
            ),
        ],
        figures=[
            Figure(title="Training", caption="FVU of batches.", drawing=curves),
            Figure(title="Densities", caption="How often.", drawing=histogram),
            Figure(title="Coders", caption="Same atoms.", drawing=fronts),
        ],
        dictionaries=[fake_dictionary("TopK", n_shown, 0), fake_dictionary("JumpReLU", n_shown, 1)],
        notes=["All of this is made up."],
    )  # fmt: skip
