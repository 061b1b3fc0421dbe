"""Acting on representations: edits at sites, directions, steering, mediation, latent perturbation search."""

from sparsight.intervention.adversarial import (
    AdversarialTraining,
    Answers,
    Attack,
    Ball,
    attack,
    latent_adversarial_training,
)
from sparsight.intervention.behaviour import NextToken, behaviour_scores, last_logits, mean_kl, rate
from sparsight.intervention.difference import (
    activations_at,
    difference_in_means,
    leace_direction,
    logistic_direction,
    top_latents,
)
from sparsight.intervention.direction import Direction, orthonormal
from sparsight.intervention.direction_edits import (
    Gate,
    ablate_direction,
    ablate_subspace,
    add_direction,
    project,
    replace,
    swap_coordinates,
    write_sites,
)
from sparsight.intervention.edits import Edits, TokenEdit
from sparsight.intervention.elicit import (
    Elicitation,
    Elicited,
    Reach,
    Search,
    elicit,
    elicit_adapters,
    find_adapters,
    find_vectors,
)
from sparsight.intervention.latent_edits import clamp
from sparsight.intervention.mediation import Format, Mediation, ModelReadout, explicit_or_tacit, mediation
from sparsight.intervention.positions import last_tokens
from sparsight.intervention.selection import Selection, select_direction
from sparsight.intervention.steering import steer, words_score
from sparsight.intervention.steering_record import Dose, Steering
from sparsight.intervention.weights import orthogonalized

__all__ = [
    "AdversarialTraining",
    "Answers",
    "Attack",
    "Ball",
    "Direction",
    "Dose",
    "Edits",
    "Elicitation",
    "Elicited",
    "Format",
    "Gate",
    "Mediation",
    "ModelReadout",
    "NextToken",
    "Reach",
    "Search",
    "Selection",
    "Steering",
    "TokenEdit",
    "ablate_direction",
    "ablate_subspace",
    "activations_at",
    "add_direction",
    "attack",
    "behaviour_scores",
    "clamp",
    "difference_in_means",
    "elicit",
    "elicit_adapters",
    "explicit_or_tacit",
    "find_adapters",
    "find_vectors",
    "last_logits",
    "last_tokens",
    "latent_adversarial_training",
    "leace_direction",
    "logistic_direction",
    "mean_kl",
    "mediation",
    "orthogonalized",
    "orthonormal",
    "project",
    "rate",
    "replace",
    "select_direction",
    "steer",
    "swap_coordinates",
    "top_latents",
    "words_score",
    "write_sites",
]
