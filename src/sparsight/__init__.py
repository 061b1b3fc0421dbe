"""Sparse dictionaries for neural activations, from harvest to causal test.

The names below are loaded when they are first used, so that `import sparsight` and `sparsight --help` stay quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it. `sparsight.<module>` submodules with a short public alias come last.
_PUBLIC = {
    "SparsightError": "sparsight.errors",
    "ModelError": "sparsight.errors",
    "DataError": "sparsight.errors",
    "StoreError": "sparsight.errors",
    "FormatError": "sparsight.errors",
    "TrainingError": "sparsight.errors",
    "UndefinedMetric": "sparsight.errors",
    "SparseCode": "sparsight.codes",
    "fista": "sparsight.coding",
    "fit_scale": "sparsight.coding",
    "matching_pursuit": "sparsight.coding",
    "orthogonal_matching_pursuit": "sparsight.coding",
    "gradient_pursuit": "sparsight.coding",
    "refit": "sparsight.coding",
    "LanguageModel": "sparsight.models",
    "Site": "sparsight.models",
    "Tokens": "sparsight.models",
    "load_model": "sparsight.models",
    "ActivationStore": "sparsight.activations",
    "ActivationStream": "sparsight.activations",
    "documents_from_dataset": "sparsight.activations",
    "documents_from_files": "sparsight.activations",
    "harvest": "sparsight.activations",
    "measure_mixing": "sparsight.activations",
    "merge_stores": "sparsight.activations",
    "BatchTopK": "sparsight.dictionaries",
    "Crosscoder": "sparsight.dictionaries",
    "Gated": "sparsight.dictionaries",
    "JumpReLU": "sparsight.dictionaries",
    "Matryoshka": "sparsight.dictionaries",
    "Pursuit": "sparsight.dictionaries",
    "ReLU": "sparsight.dictionaries",
    "TopK": "sparsight.dictionaries",
    "Transcoder": "sparsight.dictionaries",
    "Circuit": "sparsight.circuits.discovery",
    "Examples": "sparsight.circuits.discovery",
    "find_circuit": "sparsight.circuits.discovery",
    "shift": "sparsight.circuits.shift",
    "load_dictionary": "sparsight.formats",
    "FineTune": "sparsight.training",
    "TensorBoard": "sparsight.training",
    "Training": "sparsight.training",
    "WandB": "sparsight.training",
    "train": "sparsight.training",
    "causal_prediction": "sparsight.evaluation",
    "write_codes": "sparsight.evaluation.code_file",
    "compare_coders": "sparsight.evaluation",
    "evaluate": "sparsight.evaluation",
    "evaluate_side_by_side": "sparsight.evaluation",
    "run_suite": "sparsight.evaluation.benchmarks",
    "stability": "sparsight.evaluation",
    "TokenPolicy": "sparsight.evaluation",
    "recovery": "sparsight.evaluation",
    "ablate_direction": "sparsight.intervention",
    "add_direction": "sparsight.intervention",
    "clamp": "sparsight.intervention",
    "difference_in_means": "sparsight.intervention",
    "Direction": "sparsight.intervention",
    "Elicitation": "sparsight.intervention",
    "elicit": "sparsight.intervention",
    "elicit_adapters": "sparsight.intervention",
    "latent_adversarial_training": "sparsight.intervention",
    "mediation": "sparsight.intervention",
    "steer": "sparsight.intervention",
    "Effects": "sparsight.circuits",
    "Splice": "sparsight.circuits",
    "latent_effects": "sparsight.circuits",
    "Chains": "sparsight.theory.learning_coefficient",
    "FunctionLoss": "sparsight.theory.learning_coefficient",
    "LearningCoefficient": "sparsight.theory.learning_coefficient",
    "ModuleLoss": "sparsight.theory.learning_coefficient",
    "learning_coefficient": "sparsight.theory.learning_coefficient",
    "top_contexts": "sparsight.interpretation",
    "write_report": "sparsight.interpretation",
    "suite": "sparsight.suites",
}
_PUBLIC_MODULES = {
    "organism": "sparsight.models.organism",
    "metrics": "sparsight.evaluation.metrics",
    "benchmarks": "sparsight.evaluation.benchmarks",
    "features": "sparsight.evaluation.features",
}

__all__ = ["__version__", *_PUBLIC, *_PUBLIC_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_MODULES:
        return importlib.import_module(_PUBLIC_MODULES[name])
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sparsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from sparsight.activations import ActivationStore as ActivationStore
    from sparsight.activations import ActivationStream as ActivationStream
    from sparsight.activations import documents_from_dataset as documents_from_dataset
    from sparsight.activations import documents_from_files as documents_from_files
    from sparsight.activations import harvest as harvest
    from sparsight.activations import measure_mixing as measure_mixing
    from sparsight.activations import merge_stores as merge_stores
    from sparsight.circuits import Effects as Effects
    from sparsight.circuits import Splice as Splice
    from sparsight.circuits import latent_effects as latent_effects
    from sparsight.circuits.discovery import Circuit as Circuit
    from sparsight.circuits.discovery import Examples as Examples
    from sparsight.circuits.discovery import find_circuit as find_circuit
    from sparsight.circuits.shift import shift as shift
    from sparsight.codes import SparseCode as SparseCode
    from sparsight.coding import fista as fista
    from sparsight.coding import fit_scale as fit_scale
    from sparsight.coding import gradient_pursuit as gradient_pursuit
    from sparsight.coding import matching_pursuit as matching_pursuit
    from sparsight.coding import orthogonal_matching_pursuit as orthogonal_matching_pursuit
    from sparsight.coding import refit as refit
    from sparsight.dictionaries import BatchTopK as BatchTopK
    from sparsight.dictionaries import Crosscoder as Crosscoder
    from sparsight.dictionaries import Gated as Gated
    from sparsight.dictionaries import JumpReLU as JumpReLU
    from sparsight.dictionaries import Matryoshka as Matryoshka
    from sparsight.dictionaries import Pursuit as Pursuit
    from sparsight.dictionaries import ReLU as ReLU
    from sparsight.dictionaries import TopK as TopK
    from sparsight.dictionaries import Transcoder as Transcoder
    from sparsight.errors import DataError as DataError
    from sparsight.errors import FormatError as FormatError
    from sparsight.errors import ModelError as ModelError
    from sparsight.errors import SparsightError as SparsightError
    from sparsight.errors import StoreError as StoreError
    from sparsight.errors import TrainingError as TrainingError
    from sparsight.errors import UndefinedMetric as UndefinedMetric
    from sparsight.evaluation import TokenPolicy as TokenPolicy
    from sparsight.evaluation import benchmarks as benchmarks
    from sparsight.evaluation import causal_prediction as causal_prediction
    from sparsight.evaluation import compare_coders as compare_coders
    from sparsight.evaluation import evaluate as evaluate
    from sparsight.evaluation import evaluate_side_by_side as evaluate_side_by_side
    from sparsight.evaluation import features as features
    from sparsight.evaluation import metrics as metrics
    from sparsight.evaluation import recovery as recovery
    from sparsight.evaluation import stability as stability
    from sparsight.evaluation.benchmarks import run_suite as run_suite
    from sparsight.evaluation.code_file import write_codes as write_codes
    from sparsight.formats import load_dictionary as load_dictionary
    from sparsight.interpretation import top_contexts as top_contexts
    from sparsight.interpretation import write_report as write_report
    from sparsight.intervention import Direction as Direction
    from sparsight.intervention import Elicitation as Elicitation
    from sparsight.intervention import ablate_direction as ablate_direction
    from sparsight.intervention import add_direction as add_direction
    from sparsight.intervention import clamp as clamp
    from sparsight.intervention import difference_in_means as difference_in_means
    from sparsight.intervention import elicit as elicit
    from sparsight.intervention import elicit_adapters as elicit_adapters
    from sparsight.intervention import latent_adversarial_training as latent_adversarial_training
    from sparsight.intervention import mediation as mediation
    from sparsight.intervention import steer as steer
    from sparsight.models import LanguageModel as LanguageModel
    from sparsight.models import Site as Site
    from sparsight.models import Tokens as Tokens
    from sparsight.models import load_model as load_model
    from sparsight.models import organism as organism
    from sparsight.suites import suite as suite
    from sparsight.theory.learning_coefficient import Chains as Chains
    from sparsight.theory.learning_coefficient import FunctionLoss as FunctionLoss
    from sparsight.theory.learning_coefficient import LearningCoefficient as LearningCoefficient
    from sparsight.theory.learning_coefficient import ModuleLoss as ModuleLoss
    from sparsight.theory.learning_coefficient import learning_coefficient as learning_coefficient
    from sparsight.training import FineTune as FineTune
    from sparsight.training import TensorBoard as TensorBoard
    from sparsight.training import Training as Training
    from sparsight.training import WandB as WandB
    from sparsight.training import train as train
