"""Sparse circuits: nodes and edges that carry a metric, found on some examples and measured on others."""

from sparsight.circuits.discovery.acting import Acting, act_on_edges, act_on_nodes
from sparsight.circuits.discovery.circuit import Circuit, CircuitRecord
from sparsight.circuits.discovery.drawing import to_dot, to_figure, write_html
from sparsight.circuits.discovery.examples import Examples
from sparsight.circuits.discovery.find import find_circuit
from sparsight.circuits.discovery.measure import Share, completeness, curve, faithfulness, least_size, random_nodes
from sparsight.circuits.discovery.tasks import TASKS, organism_task
from sparsight.circuits.discovery.widths import WidthPoint, error_share_curve

__all__ = [
    "TASKS",
    "Acting",
    "Circuit",
    "CircuitRecord",
    "Examples",
    "Share",
    "WidthPoint",
    "act_on_edges",
    "act_on_nodes",
    "completeness",
    "curve",
    "error_share_curve",
    "faithfulness",
    "find_circuit",
    "least_size",
    "organism_task",
    "random_nodes",
    "to_dot",
    "to_figure",
    "write_html",
]
