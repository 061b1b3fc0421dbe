"""What latents respond to: their contexts, the tokens they promote, their neighbours, and a page that shows it all."""

from sparsight.interpretation.dictionary_report import Measured, write_dictionary_report, write_measured_report
from sparsight.interpretation.directions import DirectEffect, direct_effects, nearest_latents
from sparsight.interpretation.examples import Example, top_contexts
from sparsight.interpretation.page import (
    DictionaryPage,
    Estimate,
    FeatureMatch,
    Figure,
    LatentSummary,
    Measurement,
    ReportPage,
)
from sparsight.interpretation.report import write_report
from sparsight.interpretation.selection import PickedLatents, pick_latents
from sparsight.interpretation.statistics import LatentStatistics, latent_statistics
from sparsight.interpretation.summaries import summarise

__all__ = [
    "DictionaryPage",
    "DirectEffect",
    "Estimate",
    "Example",
    "FeatureMatch",
    "Figure",
    "LatentStatistics",
    "LatentSummary",
    "Measured",
    "Measurement",
    "PickedLatents",
    "ReportPage",
    "direct_effects",
    "latent_statistics",
    "nearest_latents",
    "pick_latents",
    "summarise",
    "top_contexts",
    "write_dictionary_report",
    "write_measured_report",
    "write_report",
]
