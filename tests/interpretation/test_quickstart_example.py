"""The example that the documentation points to does what it says."""

import runpy
from pathlib import Path


def test_the_quickstart_makes_a_page(tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "examples" / "quickstart.py"
    monkeypatch.setattr("sys.argv", [str(script), str(tmp_path / "run")])
    runpy.run_path(str(script), run_name="__main__")
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000
    assert "FVU at L0 16" in capsys.readouterr().out
