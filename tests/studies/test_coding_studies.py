"""The verdicts of the sparse-coding studies on constructed measurements; their fast runs on the organism."""

import pytest

from sparsight.evaluation import CausalPrediction, Comparison, Difference, Estimate
from sparsight.evaluation.causal import RankDifference
from sparsight.studies import Options, read_record, run_study
from sparsight.studies.deciding import separate_difference
from sparsight.studies.low_activations import _fewer
from sparsight.studies.orthogonality_quirk import _matters, _prevalence, _recall_gap
from sparsight.studies.orthogonality_quirk_shown import REFERENCE
from sparsight.studies.pursuit_selects_better import _selection
from sparsight.studies.record import UNDECIDED
from sparsight.studies.without_autoencoders import _better, _recovers, _whose_codes


def estimate(value: float, half: float = 0.001) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, standard_error=half / 2)


def comparison(k: int, gap: float) -> Comparison:
    """Only what the verdict reads."""
    differences = [
        Difference(first="pursuit", second="refit", k=k, fvu=estimate(gap)),
        Difference(first="refit", second="encoder", k=k, fvu=estimate(-0.01)),
    ]
    return Comparison.model_construct(differences=differences, n_documents=50)


@pytest.mark.parametrize(
    ("gaps", "answer"),
    [
        ((-0.02, -0.01, -0.03), "yes"),
        ((0.02, 0.01, 0.03), "no"),
        ((0.02, -0.01, -0.03), "depends on k"),
        ((-0.02, -0.0005, -0.03), UNDECIDED),
    ],
)
def test_pursuit_selects_better_only_if_it_does_at_every_k(gaps, answer):
    found = _selection([comparison(k, gap) for k, gap in zip((8, 16, 32), gaps, strict=True)], "k", "Does it?")
    assert found.answer == answer
    assert len(found.effects) == 6


def test_separate_intervals_give_the_widest_difference():
    found = separate_difference(estimate(0.5, 0.1), estimate(0.3, 0.05), "x", 9, "u")
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.05, 0.35))


def test_recall_of_near_duplicates_depends_on_whether_both_are_active():
    """With the reference's own recalls as data."""
    known = {key: r for key, r in REFERENCE.items() if r is not None}
    gaps = {
        key: _recall_gap(key, [{"GP": gp + d, "OMP": omp, "encoder": enc} for d in (-0.001, 0.001)])
        for key, (gp, omp, enc) in known.items()
    }
    assert _matters(gaps).answer == "depends on whether near-duplicates are truly active together"
    only_both = {key: e for key, e in gaps.items() if key[1] or key == (0.95, False)}
    only_both[0.95, False] = gaps[0.95, True]
    assert _matters(only_both).answer == "yes"


def test_a_dictionary_without_near_duplicates_decides_nothing_about_them():
    nothing = Estimate(value=0.0, low=0.0, high=0.0, standard_error=0.0).model_dump()
    together = {"pursuit": nothing, "encoder": nothing, "pursuit - encoder": nothing}
    found = _prevalence({"TopK": {"with_twin": 0.0, "together": together, "n_documents": 9}})
    assert found.answer.startswith("depends on whether")


def test_fewer_small_values_must_hold_for_all_dictionaries():
    def draws(pursuit: float) -> list[dict[str, dict[str, list[float]]]]:
        return [
            {"pursuit": {"mass": [0.0, pursuit + d, 0.3]}, "encoder, threshold": {"mass": [0.0, 0.2, 0.3]}}
            for d in (-0.001, 0.001)
        ]

    def small(pursuit: float) -> dict[str, object]:
        mass = [estimate(0.0).model_dump(), estimate(pursuit).model_dump(), estimate(0.3).model_dump()]
        other = [mass[0], estimate(0.2).model_dump(), mass[2]]
        both = {"pursuit": mass, "encoder": other}
        return {f"{d}, {c}": {"mass": m, "n_documents": 9} for d in ("TopK", "JumpReLU") for c, m in both.items()}

    assert _fewer({"a": draws(0.1)}, small(0.1)).answer == "yes"
    assert _fewer({"a": draws(0.3)}, small(0.3)).answer == "no"
    assert _fewer({"a": draws(0.1)}, small(0.3)).answer == "depends on the dictionary"


def test_recovery_is_judged_by_the_worst_seed():
    assert _recovers([{"Pursuit": 1.0, "TopK": 0.5}, {"Pursuit": 0.96, "TopK": 0.5}]).answer == "yes"
    assert _recovers([{"Pursuit": 1.0, "TopK": 0.5}, {"Pursuit": 0.94, "TopK": 0.5}]).answer == "no"


def test_training_without_an_encoder_is_held_against_the_hardest_rival():
    names = ("TopK, own code", "TopK, pursuit", "TopK, longer, own code", "TopK, longer, pursuit")

    def frontier(hardest: float) -> dict[str, object]:
        return {
            "less": {n: estimate(hardest if n == names[-1] else -1.0).model_dump() for n in names},
            "n_documents": 9,
        }

    assert _better({8: frontier(-0.1), 16: frontier(-0.1)}).answer == "yes"
    assert _better({8: frontier(0.1), 16: frontier(0.1)}).answer == "no"
    assert _better({8: frontier(-0.1), 16: frontier(0.1)}).answer == "depends on k"


def test_whose_codes_predict_is_decided_only_where_both_doses_agree():
    def causal(gap: float) -> CausalPrediction:
        difference = RankDifference(first="encoder", second="pursuit", size=estimate(gap), loss=estimate(gap))
        return CausalPrediction.model_construct(differences=[difference], n_documents=40)

    assert _whose_codes({"projection": causal(0.1), "constant": causal(0.1)}).answer == "yes"
    assert _whose_codes({"projection": causal(0.1), "constant": causal(0.0)}).answer == UNDECIDED
    assert _whose_codes({"projection": causal(0.1), "constant": causal(-0.1)}).answer == "depends on the dose"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name", ["pursuit-selects-better", "orthogonality-quirk", "low-activations", "without-autoencoders"]
)
def test_the_fast_study_runs_on_the_organism_from_seed_to_page(name, tmp_path):
    record = run_study(name, tmp_path / name, Options(fast=True, seed=1)).record
    assert read_record(tmp_path / name) == record
    assert f"sparsight study {name} --fast --seed 1" in (tmp_path / name / "page.md").read_text()
    assert all(verdict.effects for verdict in record.verdicts)


@pytest.mark.slow
def test_texts_are_for_other_models_than_the_organism(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one two three\n")
    with pytest.raises(ValueError, match="--text"):
        run_study("pursuit-selects-better", tmp_path / "s", Options(fast=True, texts=(text,)))
