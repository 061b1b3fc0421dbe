"""SHIFT: a classifier, what it goes by, who may judge that from which texts, and what is left when it is taken away."""

from sparsight.circuits.shift.biographies import LabelledText, LabelledTexts, bias_in_bios, organism_biographies
from sparsight.circuits.shift.chat import ChatJudge
from sparsight.circuits.shift.classifier import Accuracies, Classifier, accuracies, fit_classifier
from sparsight.circuits.shift.judges import DisambiguatedJudge, Judgement, LabelJudge, PersonJudge
from sparsight.circuits.shift.page import PageJudge, write_page
from sparsight.circuits.shift.removal import ablation, keeping
from sparsight.circuits.shift.shift import shift
from sparsight.circuits.shift.shift_record import Shift, ShiftRecord

__all__ = [
    "Accuracies",
    "ChatJudge",
    "Classifier",
    "DisambiguatedJudge",
    "Judgement",
    "LabelJudge",
    "LabelledText",
    "LabelledTexts",
    "PageJudge",
    "PersonJudge",
    "Shift",
    "ShiftRecord",
    "ablation",
    "accuracies",
    "bias_in_bios",
    "fit_classifier",
    "keeping",
    "organism_biographies",
    "shift",
    "write_page",
]
