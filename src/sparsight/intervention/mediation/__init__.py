"""Does a direction mediate a behaviour? A battery of tests with controls, and a verdict."""

from sparsight.intervention.mediation.battery import mediation
from sparsight.intervention.mediation.measure import Effect, fraction_mediated, greedy_dimension
from sparsight.intervention.mediation.readout import ModelReadout, Readout
from sparsight.intervention.mediation.record import Mediation, MediationTest
from sparsight.intervention.mediation.tacit import Format, explicit_or_tacit

__all__ = [
    "Effect",
    "Format",
    "Mediation",
    "MediationTest",
    "ModelReadout",
    "Readout",
    "explicit_or_tacit",
    "fraction_mediated",
    "greedy_dimension",
    "mediation",
]
