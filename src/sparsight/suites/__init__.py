"""Suites: dictionaries at many sites, widths and sparsities of one model, measured alike and listed in one index."""

from sparsight.models import choose_sites
from sparsight.suites.build import suite
from sparsight.suites.index import Measured, Suite, SuiteMember, SuiteRecord, read_suite
from sparsight.suites.page import write_suite_report
from sparsight.suites.plan import Estimate, MemberPlan, SuitePlan, plan_suite

__all__ = [
    "Estimate",
    "Measured",
    "MemberPlan",
    "Suite",
    "SuiteMember",
    "SuitePlan",
    "SuiteRecord",
    "choose_sites",
    "plan_suite",
    "read_suite",
    "suite",
    "write_suite_report",
]
