"""The tables of docs/presets.md: `python -m sparsight.training.presets.table docs/presets.md` writes them anew."""

import re
import sys
from pathlib import Path

from sparsight.training.presets.definitions import PRESETS
from sparsight.training.presets.preset import NORMALISATIONS, Definition, Preset

_EXAMPLE = 2304  # the width of Gemma 2 2B's residual stream
_CONVERSION = {
    "l1": "c / u",
    "l0": "c / u²",
    "target": "none (ours is fixed)",
    "relative": "c / u²",
    "free": "c",
}


def presets_table() -> str:
    """Conversion of coefficients, and known defects, as Markdown."""
    lines = [
        "| preset | architecture | loss | usual c | ours | at d = 2304 |",
        "|---|---|---|---|---|---|",
    ]
    for preset in PRESETS.values():
        lines += [_row(preset, name, d) for name, d in preset.definitions.items()]
    lines += ["", "| preset | input |", "|---|---|"]
    lines += [f"| `{p.name}` | {NORMALISATIONS[p.normalisation]} |" for p in PRESETS.values()]
    lines.append("")
    for preset in PRESETS.values():
        lines.append(f"- **{preset.name}** ({preset.source})")
        for defect in dict.fromkeys(text for d in preset.definitions.values() for text in d.defects):
            names = [name for name, d in preset.definitions.items() if defect in d.defects]
            lines.append(f"  - {', '.join(names)}: {defect}.")
    return "\n".join(lines)


def _row(preset: Preset, name: str, d: Definition) -> str:
    usual = "swept" if d.coefficient is None else f"{d.coefficient:.4g}"
    converted = f"`{d.setting}` = {_CONVERSION[d.kind]}" if d.setting is not None else "none"
    example = (
        ""
        if d.setting is None or d.coefficient is None
        else f"{preset.coefficient(d.coefficient, _EXAMPLE, architecture=name):.4g}"
    )
    formula = d.formula.replace("|", "\\|")
    return f"| `{preset.name}` | {name} | {formula} | {usual} | {converted} | {example} |"


def write_table(path: Path) -> None:
    """Replace what stands between the two marks of the page."""
    text = path.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- presets: begin -->\n).*?(<!-- presets: end -->)", flags=re.DOTALL)
    path.write_text(marked.sub(lambda m: f"{m[1]}\n{presets_table()}\n\n{m[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
