"""Runs that show something, from the first activation to a page with a verdict."""

from sparsight.studies.demo import DemoResult, run_demo
from sparsight.studies.demo_record import Claim, DemoRecord

__all__ = ["Claim", "DemoRecord", "DemoResult", "run_demo"]
