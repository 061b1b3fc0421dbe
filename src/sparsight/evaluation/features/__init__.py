"""Features of the input, and what in a dictionary answers to them: measured links between two kinds of thing."""

from sparsight.evaluation.features.best_latent import FeatureRow, FeatureTable, LeftOut, best_latents

__all__ = ["FeatureRow", "FeatureTable", "LeftOut", "best_latents"]
