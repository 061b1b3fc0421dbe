"""The studies by name. A study's module is imported when it is run, not when it is listed."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from sparsight.studies.record import Findings
from sparsight.studies.work import Work


@dataclass(frozen=True)
class Study:
    """A question, and the module that answers it.

    Attributes:
        name: As typed: words joined by hyphens.
        question: What it asks, in one sentence.
        source: Whose question it is.
        module: Holds `run(work: Work) -> Findings`.
    """

    name: str
    question: str
    source: str
    module: str

    def run(self, work: Work) -> Findings:
        """Do the study in the folder of `work`."""
        return cast("Callable[[Work], Findings]", import_module(self.module).run)(work)


_ALL: tuple[Study, ...] = (
    Study(
        "pursuit-selects-better",
        "Does gradient pursuit choose better latents than the encoder, or does it only re-weight them?",
        "Lewis Smith's comments on inference-time optimisation",
        "sparsight.studies.pursuit_selects_better",
    ),
    Study(
        "orthogonality-quirk",
        "Does pursuit pick atoms orthogonal to the span chosen so far, and does it matter?",
        "Lewis Smith's comments on inference-time optimisation",
        "sparsight.studies.orthogonality_quirk",
    ),
    Study(
        "low-activations",
        "Are weakly active latents interesting, or interference; does pursuit have fewer; would a threshold do?",
        "Lewis Smith and the reader he answers",
        "sparsight.studies.low_activations",
    ),
    Study(
        "without-autoencoders",
        "Can dictionaries be trained with pursuit and no autoencoder, are they better, and do networks read that way?",
        "Lewis Smith's comments on inference-time optimisation",
        "sparsight.studies.without_autoencoders",
    ),
    Study(
        "shrinkage",
        "Which formula measures shrinkage, why did the wrong one look right, and what shrinks?",
        "Sam Marks' comments on the Gated SAE paper",
        "sparsight.studies.shrinkage",
    ),
    Study(
        "architectures",
        "Which architecture leaves least variance at equal L0, and is it the order that the literature reports?",
        "the papers that introduced them, each against those before it",
        "sparsight.studies.architectures",
    ),
    Study(
        "gated-loss",
        "What is the auxiliary term of Gated's loss for, what happens without it, and which reading is the loss?",
        "Sam Marks' comments on Gated dictionaries, and the reading he credits to Jannik Brinkmann",
        "sparsight.studies.gated_loss",
    ),
    Study(
        "backdoor",
        "Are latent adversarial examples useful for more than training, and more than input-level ones?",
        "Sam Marks' comments on latent adversarial training",
        "sparsight.studies.backdoor",
    ),
    Study(
        "biased-judge",
        "Can SHIFT be judged from the biased inputs alone, and which hypotheses do they leave undecidable?",
        "Sam Marks' comments on SHIFT",
        "sparsight.studies.biased_judge",
    ),
    Study(
        "gradients-under-gates",
        "Do integrated gradients handle the discontinuities of gates, and how badly does attribution patching do?",
        "Marks et al., Sparse feature circuits, and the question of what happens at a JumpReLU's threshold",
        "sparsight.studies.gradients_under_gates",
    ),
    Study(
        "nearly-singular",
        'What would "nearly singular" mean, does it show, and why do Gaussian posteriors fail?',
        "Lewis Smith's comments on singular learning theory",
        "sparsight.studies.nearly_singular",
    ),
)

STUDIES: dict[str, Study] = {study.name: study for study in _ALL}


def find_study(name: str) -> Study:
    """The study of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in STUDIES:
        raise ValueError(f"no study {name!r}; there are: {', '.join(STUDIES)}")
    return STUDIES[name]
