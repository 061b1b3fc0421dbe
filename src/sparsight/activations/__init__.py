"""Stored and streamed activations: what a model computes at some sites, token by token."""

from sparsight.activations.documents import Document, documents_from_files
from sparsight.activations.harvest import harvest
from sparsight.activations.store import ActivationStore, ContextBatch, TokenRows
from sparsight.activations.stream import ActivationStream

__all__ = [
    "ActivationStore",
    "ActivationStream",
    "ContextBatch",
    "Document",
    "TokenRows",
    "documents_from_files",
    "harvest",
]
