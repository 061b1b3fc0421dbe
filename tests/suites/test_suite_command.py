"""The command `sparsight suite`: its plan, and what it answers to wrong calls."""

import json

import pytest

from sparsight.cli import main

SMALL = ["--width", "64", "--l0", "4", "--l0", "8", "--tokens", "2000", "--sites", "all.attn_z", "--batch-size", "256"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["suite", *arguments])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_the_plan_is_shown_and_nothing_is_made(capsys, tmp_path):
    code, out, _ = run(capsys, *SMALL, "--out", str(tmp_path / "s"), "--plan", "--json")
    shown = json.loads(out)
    assert code == 0
    assert len(shown["members"]) == 4 * 2
    assert shown["activation_bytes"] == 4 * 2000 * 128 * 2
    assert shown["seconds"] > 0
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sites", "7.mlp_out"], 1, "organism has no site 7.mlp_out; it has embed; layers 0-3"),
        (["--width", "0"], 2, "widths must be positive, got 0"),
        (["--l0", "65"], 2, "an L0 cannot exceed the width, got l0=65 with width=64"),
        (["--dataset", "pile"], 1, "data set 'pile' cannot be opened (split 'train')"),
        (["--architecture", "dense"], 2, "architecture must be one of topk"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(capsys, tmp_path, arguments, code, message):
    found, _, err = run(capsys, *SMALL, *arguments, "--out", str(tmp_path / "s"), "--quiet")
    assert found == code
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_the_command_makes_a_suite_and_prints_its_index(capsys, tmp_path):
    out = str(tmp_path / "s")
    small = [
        *SMALL[:-4],
        "--sites",
        "1.attn_z",
        "--batch-size",
        "256",
        "--loss-tokens",
        "200",
        "--train-tokens",
        "2000",
    ]
    code, printed, _ = run(capsys, *small, "--out", out, "--quiet", "--json")
    shown = json.loads(printed)
    assert code == 0
    assert [member["target_l0"] for member in shown["members"]] == [4, 8]
    assert (tmp_path / "s" / "report.html").stat().st_size > 20_000
