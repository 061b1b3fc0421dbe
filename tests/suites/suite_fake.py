"""A suite small enough for a test: two sites of the organism, two widths, two sparsities."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sparsight.models import load_model, organism
from sparsight.suites import Suite, suite
from sparsight.training import Training

SETTINGS: dict[str, Any] = {
    "n_tokens": 1500,
    "training": Training(n_tokens=2048, batch_size=256, lr=3e-3, checkpoint_every=2, normalization_tokens=512),
    "heldout": 0.3,
    "loss_tokens": 150,
}


def small_suite(out: Path, **changes: Any) -> Suite:
    return suite(
        load_model("organism", device="cpu"),
        lambda: organism.corpus(3, 10**6),
        ["1.attn_z", "2.resid_post"],
        [32, 64],
        [2, 4],
        "topk",
        out,
        **{**SETTINGS, **changes},
    )


def die_at(stage: str) -> None:
    """Kill this process, so that nothing can be tidied up, when a stage of the suite is reached."""
    import sparsight.suites.build as build
    import sparsight.training.loop as loop

    def killing(original: Any, after: int) -> Any:
        calls = 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return run

    if stage == "harvest":
        build.harvest = killing(build.harvest, 1)
    elif stage == "training":  # at the seventh batch of the second site: the last checkpoint is of the sixth
        loop.Training.lr_at = killing(loop.Training.lr_at, 8 + 7)
    elif stage == "evaluation":  # when three of the first site's four members are measured
        build.evaluate = killing(build.evaluate, 4)
    else:
        build.write_index = killing(build.write_index, 1)


if __name__ == "__main__":
    die_at(sys.argv[1])
    small_suite(Path(sys.argv[2]))
