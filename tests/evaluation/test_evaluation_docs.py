"""docs/evaluation.md defines every number that a record holds."""

import dataclasses
from pathlib import Path

import pytest

from sparsight.evaluation import ARMS, FeatureRow, Recovery, SearchRecord, Shrinkage
from sparsight.evaluation.comparison.record import COMPARISON_CONVENTIONS, ArmRecord, Diagnostics, Difference
from sparsight.evaluation.record import CONVENTIONS, DensityRecord, Evaluation, L0Record, LossRecord
from sparsight.evaluation.shrinkage_panel_record import ShrinkagePanel, Spread, TokenGroup, ValueBin

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf8")

# What is not a measurement and needs no definition.
PLAIN = {
    *(
        "schema_version",
        "sparsight_version",
        "dictionary",
        "site",
        "model",
        "coder",
        "k",
        "token_policy",
        "conventions",
    ),
    *("n_documents", "mean", "histogram_counts", "arm", "own_l0", "loss_added", "first", "second", "seconds", "label"),
    *("feature", "n", "n_train", "n_positive_train"),
}


RECORDS = [Evaluation, L0Record, DensityRecord, LossRecord, ArmRecord, Diagnostics, Difference, FeatureRow]
RECORDS += [SearchRecord, ShrinkagePanel, TokenGroup, ValueBin, Spread]


@pytest.mark.parametrize("record", RECORDS)
def test_every_number_of_a_record_is_defined(record):
    assert [name for name in record.model_fields if name not in PLAIN and f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("result", [Shrinkage, Recovery])
def test_every_number_of_a_result_is_defined(result):
    names = {field.name for field in dataclasses.fields(result)} - {"threshold"}
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_every_arm_is_defined_in_the_docs_and_in_the_record():
    assert [name for name in ARMS if f"`{name}`" not in PAGE] == []
    assert [name for name in ARMS if name not in COMPARISON_CONVENTIONS] == []


def test_every_measurement_names_its_convention_in_the_record():
    measured = {"l0", "fvu", "fvu_uncentred", "fvu_token_mean", "fvu_without_outliers", "cosine", "cosine_centred"}
    measured |= {"density", "shrinkage", "shrinkage_centred", "shrinkage_panel", "loss"}
    assert measured <= CONVENTIONS.keys()
    assert measured <= Evaluation.model_fields.keys()
