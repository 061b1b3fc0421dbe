"""Whole experiments: the demo, and the open questions as studies with a verdict (docs/studies/README.md)."""

from sparsight.studies.demo import DemoResult, run_demo
from sparsight.studies.demo_record import Claim, DemoRecord
from sparsight.studies.record import Effect, Findings, Line, Panel, StudyRecord, Table, Verdict
from sparsight.studies.registry import STUDIES, Study, find_study
from sparsight.studies.study import StudyResult, publish, read_record, run_study
from sparsight.studies.work import Options, Work

__all__ = [
    "STUDIES",
    "Claim",
    "DemoRecord",
    "DemoResult",
    "Effect",
    "Findings",
    "Line",
    "Options",
    "Panel",
    "Study",
    "StudyRecord",
    "StudyResult",
    "Table",
    "Verdict",
    "Work",
    "find_study",
    "publish",
    "read_record",
    "run_demo",
    "run_study",
]
