"""The study of SHIFT's judge: its rules on constructed numbers, and the fast run."""

import pytest
import torch

from sparsight.circuits.shift import LabelledText, LabelledTexts
from sparsight.studies import Options, run_study
from sparsight.studies.biased_judge import against_deletion, judged_alone, left_open, serving_alone
from sparsight.studies.biased_judge_measured import ARMS, DECIDED, DELETED, ORIGINAL, RANDOM, SERVING, SHIFT, _halves
from sparsight.studies.record import UNDECIDED


def seeds(undecided=3, narrow=1, **worst):
    """Five seeds: worst-group accuracies by arm, the same in each but for a little."""
    named = {"shift": SHIFT, "decided": DECIDED, "original": ORIGINAL, "chance": RANDOM, "deleted": DELETED,
             "serving": SERVING}  # fmt: skip
    made = []
    for s in range(5):
        by_arm = {arm: 0.5 for arm in ARMS} | {named[k]: v + 0.001 * (s - 2) * (k == "shift") for k, v in worst.items()}
        arms = {arm: {"worst_group": v, "accuracy": v, "spurious": 0.5} for arm, v in by_arm.items()}
        open_ = {
            "judged": 10,
            "undecided": undecided,
            "undecided, fires on its words, whatever the rest": undecided - narrow,
            "undecided, only with the target": narrow,
            "undecided, only with the spurious feature": 0,
            "undecided, only with both": 0,
        }
        made.append({"arms": arms, "undecided": open_})
    return made


def test_as_good_as_with_deciding_data_and_better_than_nothing_is_yes():
    assert judged_alone(seeds(shift=0.9, decided=0.92, original=0.0, chance=0.1)).answer == "yes"


def test_a_loss_beyond_the_margin_is_no_and_so_is_no_gain():
    assert judged_alone(seeds(shift=0.7, decided=0.92, original=0.0, chance=0.1)).answer == "no"
    assert judged_alone(seeds(shift=0.4, decided=0.4, original=0.5, chance=0.1)).answer == "no"


def test_a_gain_that_random_latents_have_as_well_decides_nothing():
    assert judged_alone(seeds(shift=0.9, decided=0.9, original=0.0, chance=0.9)).answer == UNDECIDED


def test_deletion_is_compared_by_its_sign():
    assert against_deletion(seeds(shift=0.9, deleted=0.8)).answer == "yes"
    assert against_deletion(seeds(shift=0.9, deleted=0.97)).answer == "no"


def test_serving_latents_have_to_beat_both_the_original_and_deletion():
    assert serving_alone(seeds(serving=0.9, original=0.0, deleted=0.5)).answer == "yes"
    assert serving_alone(seeds(serving=0.4, original=0.5, deleted=0.5)).answer == "no"
    assert serving_alone(seeds(serving=0.4, original=0.0, deleted=0.5)).answer == "depends on the seed"


def test_traces_are_half_distances_at_equal_shares_of_the_other():
    cells = [(0, 0), (0, 1), (0, 1), (1, 0), (1, 1)]
    texts = LabelledTexts(tuple(LabelledText(i, "x", t, s) for i, (t, s) in enumerate(cells)), "t", "s", ("a", "b"),
                          ("m", "f"))  # fmt: skip
    signs = 2.0 * torch.tensor(cells) - 1
    x = signs @ torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]) + 7
    assert _halves(x, texts) == pytest.approx([5.0, 2.0])


def test_open_hypotheses_are_counted_with_their_truth():
    verdict = left_open(seeds(undecided=4, narrow=3))
    assert verdict.answer == "yes"
    assert "Of 50 judged latents, 20 have readings" in verdict.because
    assert "15 of them do wait" in verdict.because
    assert left_open(seeds(undecided=0, narrow=0)).answer == UNDECIDED


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="only the organism brings"):
        run_study("biased-judge", tmp_path / "s", Options(model="organism-backdoored"))


@pytest.mark.slow
def test_the_fast_run_ends_with_a_record(tmp_path):
    record = run_study("biased-judge", tmp_path / "s", Options(fast=True)).record
    assert [len(table.rows) for table in record.tables] == [len(ARMS), 6, 2, 2, 2]
    assert len(record.verdicts) == 4
