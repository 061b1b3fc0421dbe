"""Adversaries in latent space: perturbations inside a ball that make a model fail, and training against them."""

from sparsight.intervention.adversarial.attack import Attack, Attacked, attack
from sparsight.intervention.adversarial.ball import Ball, span_of_latents, whitening
from sparsight.intervention.adversarial.examples import Answers, success
from sparsight.intervention.adversarial.training import AdversarialTraining, Hardened, latent_adversarial_training

__all__ = [
    "AdversarialTraining",
    "Answers",
    "Attack",
    "Attacked",
    "Ball",
    "Hardened",
    "attack",
    "latent_adversarial_training",
    "span_of_latents",
    "success",
    "whitening",
]
