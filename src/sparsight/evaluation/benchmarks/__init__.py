"""The benchmarks that users know from SAEBench, from their definitions: on plain arrays, and on a labelled store."""

from sparsight.evaluation.benchmarks.absorption import AbsorptionRule, absorbed, absorption, own_latents
from sparsight.evaluation.benchmarks.examples import Examples, draw_tokens, pool_documents
from sparsight.evaluation.benchmarks.interchange import Prompts, interchange
from sparsight.evaluation.benchmarks.layout import of_benchmark, of_evaluation, write_saebench
from sparsight.evaluation.benchmarks.record import Benchmark, Score
from sparsight.evaluation.benchmarks.run import BENCHMARKS, BenchmarkSuite, run_suite
from sparsight.evaluation.benchmarks.sparse_probing import Task, probe, sparse_probing
from sparsight.evaluation.benchmarks.spurious import prepare, spurious_removal
from sparsight.evaluation.benchmarks.targeted import targeted_perturbation
from sparsight.evaluation.benchmarks.unlearning import Exam, Pushing, unlearning

__all__ = [
    "BENCHMARKS",
    "AbsorptionRule",
    "Benchmark",
    "BenchmarkSuite",
    "Exam",
    "Examples",
    "Prompts",
    "Pushing",
    "Score",
    "Task",
    "absorbed",
    "absorption",
    "draw_tokens",
    "interchange",
    "of_benchmark",
    "of_evaluation",
    "own_latents",
    "pool_documents",
    "prepare",
    "probe",
    "run_suite",
    "sparse_probing",
    "spurious_removal",
    "targeted_perturbation",
    "unlearning",
    "write_saebench",
]
