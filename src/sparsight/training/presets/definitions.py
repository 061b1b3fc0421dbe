"""The presets themselves. Facts about the sources are of mid-2026; docs/presets.md has the table made from them."""

from sparsight.dictionaries import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, TopK
from sparsight.training.presets import losses
from sparsight.training.presets.preset import Definition, Preset, Schedule

_NO_INPUT_SHIFT = (
    "the source's encoder takes x and not x - b_dec: the same functions, with b_enc shifted by b_dec W_enc"
)
_TEN_MILLION = 10_000_000

_L1 = "mean Σ_d e² + c · mean Σ_j f_j |row_j|"
_GATED = "mean Σ_d e² + c · mean Σ_j q_j + mean Σ_d (x - q W - b)², q the rectified gate"

ANTHROPIC = Preset(
    name="anthropic-april-2024",
    source="Conerly et al., Update on how we train SAEs, Transformer Circuits, April 2024",
    normalisation="mean norm sqrt(d)",
    definitions={
        "relu": Definition(
            loss=losses.with_l1, formula=_L1, coefficient=5.0, kind="l1", setting="l1", config=ReLU,
            fixed={"norms": "free", "aux": 0.0}, defects=(_NO_INPUT_SHIFT,),
        )
    },
    schedule=Schedule(batch_size=4096, lr=5e-5, sparsity_share=0.05, decay=0.2),
)  # fmt: skip

GEMMA_SCOPE = Preset(
    name="gemma-scope",
    source="Lieberum et al., Gemma Scope, arXiv 2408.05147; Rajamanoharan et al., arXiv 2407.14435",
    normalisation="mean square 1",
    definitions={
        "jumprelu": Definition(
            loss=losses.with_l0, formula="mean Σ_d e² + c · mean L0", coefficient=None, kind="l0", setting="l0",
            config=JumpReLU, fixed={"aux": 0.0}, scaled={"bandwidth": 1e-3, "threshold": 1e-3},
            defects=(
                _NO_INPUT_SHIFT,
                "the thresholds of the source are not held by a logarithm, and its rate rises along a cosine",
            ),
        )
    },
    schedule=Schedule(
        batch_size=4096, lr=7e-5, warmup_steps=1000, sparsity_steps=10_000, betas=(0.0, 0.999), clip=None
    ),
)  # fmt: skip

OPENAI = Preset(
    name="openai-topk",
    source="Gao et al., Scaling and evaluating sparse autoencoders, arXiv 2406.04093; openai/sparse_autoencoder",
    normalisation="none",
    definitions={
        "topk": Definition(
            loss=losses.openai_topk,
            formula="mean e² / Var(x) + c · |e - ê|² / |e - mean e|²; ê by 256 rectified dead latents",
            coefficient=1 / 32, kind="free", setting="aux", config=TopK,
            fixed={"k": 32, "k_aux": 256, "dead_after": _TEN_MILLION},
            defects=(
                "the paper centres each token and scales it to unit norm; the published training script does not",
                "Var(x) is that of a sample taken before training; here it is that of the batch",
                "the training loop of the published script does not set gradients back to zero between steps",
                "dead latents are rectified: one that is negative on every token is never revived (here it is)",
            ),
        )
    },
    schedule=Schedule(batch_size=131_072, lr=1e-4, clip=None),
)  # fmt: skip

_SAELENS_AUX = (
    "the auxiliary loss is not divided by the residual's variance, so it fades as the fit improves; ours does not, and "
    "no constant converts one into the other (our default stands)"
)
_SAELENS_DEAD = "dead means silent for 1,000 batches, whatever their size"
_SAELENS_SHARED = {"dead_after": 1000 * 4096}

SAELENS = Preset(
    name="saelens",
    source="decoderesearch/SAELens 6.54",
    normalisation="mean norm sqrt(d)",
    definitions={
        "relu": Definition(
            loss=losses.with_l1, formula=_L1, coefficient=1.0, kind="l1", setting="l1", config=ReLU,
            fixed={"norms": "free", "aux": 0.0},
            defects=("rows keep their norms when saved, so codes of two files may have different units",),
        ),
        "gated": Definition(
            loss=losses.gated, formula=_GATED, coefficient=1.0, kind="l1", setting="l1", config=Gated,
            fixed={"freeze_aux_decoder": False, "aux": 0.0},
            defects=("the decoder of the third term is not held constant, against the paper; the value is the same",),
        ),
        "jumprelu": Definition(
            loss=losses.with_l0, formula="mean Σ_d e² + c · mean L0", coefficient=1.0, kind="l0", setting="l0",
            config=JumpReLU, fixed={"aux": 0.0}, scaled={"bandwidth": 0.05, "threshold": 0.01},
            defects=("the default coefficient is far above the useful 1e-3 to 1e-1",),
        ),
        "topk": Definition(
            loss=losses.saelens_topk, formula="mean Σ_d e² + c · min(|D|/k_aux, 1) · mean Σ_d (e - ê)²",
            coefficient=1.0, kind="free", setting=None, config=TopK, fixed={"k": 100, **_SAELENS_SHARED},
            defects=(_SAELENS_AUX, _SAELENS_DEAD),
        ),
        "batchtopk": Definition(
            loss=losses.saelens_topk, formula="as topk", coefficient=1.0, kind="free", setting=None, config=BatchTopK,
            fixed={"k": 100, **_SAELENS_SHARED},
            defects=(
                _SAELENS_AUX, _SAELENS_DEAD,
                "the threshold of inference is a running mean of minima, which leaves more than k latents active",
            ),
        ),
        "matryoshka": Definition(
            loss=losses.saelens_matryoshka, formula="Σ over prefixes of mean Σ_d e², and the revival of topk",
            coefficient=1.0, kind="free", setting=None, config=Matryoshka, fixed={"k": 100, **_SAELENS_SHARED},
            defects=(_SAELENS_AUX, _SAELENS_DEAD),
        ),
    },
    schedule=Schedule(batch_size=4096, lr=3e-4),
)  # fmt: skip

_DL_TOPK = {"k_aux": None, "dead_after": _TEN_MILLION}
_DL_DEAD = "dead latents are rectified: one that is negative on every token is never revived (here it is)"
_DL_UNITS = "c weighs a term without units against Σ e², so it means something only with the project's own input scale"

DICTIONARY_LEARNING = Preset(
    name="dictionary-learning",
    source="saprmarks/dictionary_learning, August 2025",
    normalisation="mean square 1",
    definitions={
        "relu": Definition(
            loss=losses.with_l1, formula=_L1, coefficient=0.1, kind="l1", setting="l1", config=ReLU,
            fixed={"norms": "unit", "aux": 0.0},
            defects=("the encoder starts with rows of norm 0.1 and the decoder is set to norm 1 after the first step",),
        ),
        "gated": Definition(
            loss=losses.gated, formula=_GATED, coefficient=0.1, kind="l1", setting="l1", config=Gated,
            fixed={"aux": 0.0},
        ),
        "jumprelu": Definition(
            loss=losses.with_target_l0, formula="mean Σ_d e² + c · (mean L0 / L0* - 1)²", coefficient=1.0,
            kind="target", setting=None, config=JumpReLU, fixed={"target_l0": 20.0, "aux": 0.0},
            scaled={"bandwidth": 1e-3, "threshold": 1e-3},
            defects=(
                "L0 is counted on values after the jump: the threshold gets half of its gradient (the value is right)",
                "our weight of the distance to the target is fixed at 4, whatever c",
            ),
        ),
        "topk": Definition(
            loss=losses.dictionary_learning_topk, formula="mean Σ_d e² + c · |e - ê|² / |e - mean e|²",
            coefficient=1 / 32, kind="relative", setting="aux", config=TopK, fixed={"k": 32, **_DL_TOPK},
            defects=(_DL_DEAD, _DL_UNITS),
        ),
        "batchtopk": Definition(
            loss=losses.dictionary_learning_topk, formula="as topk", coefficient=1 / 32, kind="relative", setting="aux",
            config=BatchTopK, fixed={"k": 32, **_DL_TOPK},
            defects=(
                _DL_DEAD, _DL_UNITS,
                "the threshold of inference is a running mean of minima, which leaves more than k latents active",
            ),
        ),
        "matryoshka": Definition(
            loss=losses.dictionary_learning_matryoshka,
            formula="(1/n²) Σ over the n prefixes of mean Σ_d e² + c · |e - ê|² / |e - mean e|²",
            coefficient=1 / 32, kind="relative", setting=None, config=Matryoshka, fixed={"k": 32, **_DL_TOPK},
            defects=(
                _DL_DEAD, _DL_UNITS,
                "errors are divided by the number n of prefixes twice: c is n times as strong as intended",
                "its c would be our aux = n² c / u²; ours keeps its default, whatever n",
            ),
        ),
    },
    schedule=Schedule(
        batch_size=8192, lr=2e-4, lr_by_width=True, warmup_steps=1000, sparsity_steps=2000, clip=1.0
    ),
)  # fmt: skip

SPARSIFY = Preset(
    name="sparsify",
    source="EleutherAI/sparsify 1.3.3",
    normalisation="none",
    definitions={
        "topk": Definition(
            loss=losses.sparsify_topk,
            formula="|e|² / |x - mean x|² + c · min(|D|/k_aux, 1) · |e - ê|² / |x - mean x|²",
            coefficient=0.0, kind="free", setting=None, config=TopK,
            fixed={"k": 32, "aux": 0.0, "dead_after": _TEN_MILLION},
            defects=(
                "the fused encoder passes no gradient of the auxiliary term (nor of Multi-TopK) to the encoder",
                "the variance is that of each batch, whose tokens come from a few documents",
                "version 1.3.0 counted b_dec twice in the auxiliary term; the loss here counts it once",
                "signum in a schedule-free wrapper is the default optimiser; the schedule here is that of its Adam",
            ),
        )
    },
    schedule=Schedule(batch_size=65_536, lr=2e-4, lr_by_width=True, warmup_steps=1000, decay=None, clip=None),
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    p.name: p for p in (ANTHROPIC, GEMMA_SCOPE, OPENAI, SAELENS, DICTIONARY_LEARNING, SPARSIFY)
}
