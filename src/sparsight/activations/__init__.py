"""Stored and streamed activations: what a model computes at some sites, token by token."""

from sparsight.activations.documents import Document, documents_from_dataset, documents_from_files
from sparsight.activations.harvest import harvest
from sparsight.activations.merging import merge_stores
from sparsight.activations.mixing import Mixing, measure_mixing
from sparsight.activations.ray_readers import RayReaders
from sparsight.activations.store import ActivationStore, ContextBatch, TokenRows
from sparsight.activations.stream import ActivationStream

__all__ = [
    "ActivationStore",
    "ActivationStream",
    "ContextBatch",
    "Document",
    "Mixing",
    "RayReaders",
    "TokenRows",
    "documents_from_dataset",
    "documents_from_files",
    "harvest",
    "measure_mixing",
    "merge_stores",
]
