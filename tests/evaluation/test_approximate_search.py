"""An approximate search by name: never the default, the codes of a `Screening`, and a record of what it did."""

import json

import pytest
import torch
from evaluation_fake import SITE, MemoryStore

from sparsight.coding import Screening, gradient_pursuit
from sparsight.dictionaries import TopK
from sparsight.errors import StoreError
from sparsight.evaluation import Approximate, compare_coders, evaluate, metrics
from sparsight.evaluation.code_file import CodeFile, write_codes
from sparsight.evaluation.evaluate import coder_of
from sparsight.studies.planted import random_atoms

PLANTED = random_atoms(5, 32, 400, 6, 0.1, 360)
K = 6
# Few enough candidates for choices to differ.
ROUGH = Approximate(candidates=6, scans=1, checked=120)


@pytest.fixture(scope="module")
def dictionary():
    made = TopK(400, K).build(32, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.atoms.copy_(PLANTED.atoms)
        made.W_enc.copy_(PLANTED.atoms.T)
        made.b_dec.fill_(0.1)
    made.site, made.model = SITE, "tiny"
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def store():
    return MemoryStore(PLANTED.x.float() + 0.1, torch.arange(360) // 12)


def by_hand(dictionary, x):
    """Codes of the same search, exact ones, and what the search did."""
    y = x - dictionary.b_dec
    search = Screening(dictionary.atoms, candidates=ROUGH.candidates, scans=ROUGH.scans)
    return gradient_pursuit(y, dictionary.atoms, K, search=search), gradient_pursuit(y, dictionary.atoms, K), search


def test_evaluate_uses_the_search_and_records_it(dictionary, store):
    found = evaluate(dictionary, store, coder="gradient_pursuit", k=K, search=ROUGH, split="all")
    rough, exact, search = by_hand(dictionary, store.x)
    assert found.fvu.value == pytest.approx(metrics.fvu(store.x, dictionary.decode(rough)), rel=1e-6)
    assert found.fvu.value > metrics.fvu(store.x, dictionary.decode(exact))
    record, report = found.search, search.report()
    assert (record.method, record.candidates, record.scans) == ("approximate", 6, 1)
    assert (record.rows, record.choices, record.scanned) == (360, report.choices, report.scanned)
    assert record.proven_share == pytest.approx(report.proven_share, abs=0.01)
    assert record.checked_rows == 119  # 17 places of 7 rows
    assert record.fvu_difference == pytest.approx(record.fvu - record.fvu_exact)
    assert record.fvu_difference > 0
    assert 0 < record.same_support < 1
    assert "6 candidates, 1 scans" in " ".join(found.to_table().split())
    assert json.loads(found.to_json())["search"]["proven_share"] == record.proven_share


def test_the_cost_is_that_of_both_codes_on_all_rows_when_all_are_checked(dictionary, store):
    code = coder_of(dictionary, "pursuit", K, len(store.x), ROUGH)
    rough, exact, _ = by_hand(dictionary, store.x)
    record = code.record(store.x)
    assert record.rows == 0  # checked rows are not counted among those that were asked for
    assert record.fvu == pytest.approx(metrics.fvu(store.x, dictionary.decode(rough)), rel=1e-6)
    assert record.fvu_exact == pytest.approx(metrics.fvu(store.x, dictionary.decode(exact)), rel=1e-6)
    same = (rough.to_dense() != 0) == (exact.to_dense() != 0)
    assert record.same_support == pytest.approx(same.all(dim=1).double().mean().item())


def test_the_exact_search_stays_the_default(dictionary, store):
    found = evaluate(dictionary, store, coder="gradient_pursuit", k=K, split="all")
    assert found.search is None
    assert found.fvu.value == pytest.approx(
        metrics.fvu(store.x, dictionary.decode(by_hand(dictionary, store.x)[1])), rel=1e-6
    )
    assert all(arm.search is None for arm in compare_coders(dictionary, store, [K], ["pursuit"], split="all").arms)


def test_compare_records_every_arm_that_searches(dictionary, store):
    names = ["encoder", "refit", "pursuit", "polished", "mp", "omp"]
    found = compare_coders(dictionary, store, [K, 3], names, split="all", search=ROUGH, n_tokens=None)
    searched = {(arm.arm, arm.k): arm.search for arm in found.arms if arm.search is not None}
    assert len(searched) == 8
    assert all(record.rows == 360 for record in searched.values())
    rough, _, search = by_hand(dictionary, store.x)
    assert searched["pursuit", K].choices == search.report().choices
    gradient = next(arm for arm in found.arms if (arm.arm, arm.k) == ("pursuit", K))
    assert gradient.fvu.value == pytest.approx(metrics.fvu(store.x, dictionary.decode(rough)), rel=1e-6)
    assert found.to_table().count("approximate search (6 candidates") == 8


class Breaks(MemoryStore):
    """A store whose rows cannot be read beyond a point."""

    def rows(self, site, rows):
        if isinstance(rows, slice) and rows.start >= 200:
            raise OSError("the disk went away")
        return super().rows(site, rows)


def test_a_code_file_holds_the_codes_and_the_record_and_resumes_to_the_same_bytes(dictionary, store, tmp_path):
    options = {"coder": "gradient_pursuit", "k": K, "search": ROUGH, "batch_size": 100}
    whole = write_codes(dictionary, store, tmp_path / "whole.safetensors", **options)
    # The rows of a block are scanned together, so the blocks must be the same.
    rough = torch.cat([by_hand(dictionary, x)[0].to_dense() for x in store.x.split(100)])
    torch.testing.assert_close(whole.rows(slice(0, 360)).to_dense(), rough, rtol=1e-5, atol=1e-5)
    assert whole.metadata["search"] == {"method": "approximate", "candidates": 6, "scans": 1, "checked": 120}
    record = whole.metadata["search_record"]
    assert record["rows"] == 360
    assert record["fvu_difference"] > 0
    cut = tmp_path / "cut.safetensors"
    with pytest.raises(OSError, match="disk went away"):
        write_codes(dictionary, Breaks(store.x, store.document_ids), cut, **options)
    write_codes(dictionary, store, cut, **options, resume=True)
    assert cut.read_bytes() == whole.path.read_bytes()
    assert write_codes(dictionary, store, cut, **options, resume=True).metadata == whole.metadata
    with pytest.raises(StoreError, match="other codes"):
        write_codes(dictionary, store, cut, coder="gradient_pursuit", k=K, batch_size=100, resume=True)
    exact = write_codes(dictionary, store, tmp_path / "exact.safetensors", coder="gradient_pursuit", k=K)
    assert not {"search", "search_record"} & set(CodeFile.open(exact.path).metadata)


def test_a_coder_that_searches_nothing_is_refused(dictionary, store):
    with pytest.raises(ValueError, match="own rule searches no atoms"):
        evaluate(dictionary, store, search=ROUGH)
    with pytest.raises(ValueError, match="coder='refit' searches no atoms"):
        evaluate(dictionary, store, coder="refit", k=K, search=ROUGH)
    with pytest.raises(ValueError, match="none of them is among the arms"):
        compare_coders(dictionary, store, [K], ["encoder", "refit"], search=ROUGH)
    with pytest.raises(ValueError, match="candidates and scans must be at least 1"):
        Approximate(candidates=0)
