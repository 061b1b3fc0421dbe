"""What latents cause: nodes spliced into a model, and effects of changing them."""

from sparsight.circuits.effects import latent_effects
from sparsight.circuits.effects_record import Effects, SiteEffects
from sparsight.circuits.metric import Bench, Metric, Passes, log_probability, logit_difference, probe
from sparsight.circuits.nodes import AbstractNodes, DictionaryNodes, DirectionNodes, NeuronNodes, nodes_of
from sparsight.circuits.pairs import Pairs, read_pairs
from sparsight.circuits.smoothing import SmoothedNodes
from sparsight.circuits.splice import Change, NodeValues, Splice, put_together, take_apart

__all__ = [
    "AbstractNodes",
    "Bench",
    "Change",
    "DictionaryNodes",
    "DirectionNodes",
    "Effects",
    "Metric",
    "NeuronNodes",
    "NodeValues",
    "Pairs",
    "Passes",
    "SiteEffects",
    "SmoothedNodes",
    "Splice",
    "latent_effects",
    "log_probability",
    "logit_difference",
    "nodes_of",
    "probe",
    "put_together",
    "read_pairs",
    "take_apart",
]
