"""From text to a dictionary, its measurements and a page, in half a minute on two cores.

    python examples/quickstart.py [FOLDER]

The model is the one that ships with sparsight, and so are its texts, in which every token is labelled: nothing is
downloaded. Put another name into `load_model` and your own strings into `documents`, and the rest stays as it is.
"""

import sys
import tempfile
from pathlib import Path

import sparsight as ss
from sparsight.interpretation import write_dictionary_report


def main(folder: Path) -> None:
    # A model, a text, a site.
    lm = ss.load_model("organism", device="cpu")
    documents = ss.organism.corpus(seed=1, n_documents=500)
    store = ss.harvest(lm, documents, "2.resid_post", folder / "activations", n_tokens=20_000)

    # A dictionary: 512 latents, at most 16 of them in use for each token.
    settings = ss.Training(n_tokens=100_000, batch_size=512, lr=3e-3)
    (run,) = ss.train(store, [ss.TopK(512, k=16)], settings, out=folder / "dictionaries", device="cpu")

    # What it explains of documents it was not trained on, and what it costs the model.
    evaluation = ss.evaluate(run.dictionary, store, model=lm)
    print(evaluation.to_table())
    assert evaluation.fvu.value < 0.25
    assert evaluation.loss is not None
    assert evaluation.loss.added.value < evaluation.loss.added_by_mean.value

    # The same atoms, coded in other ways at the same number of latents: pursuit explains most.
    comparison = ss.compare_coders(run.dictionary, store, [16], ["encoder", "refit", "pursuit"], n_tokens=2048)
    fvu = {arm.arm: arm.fvu.value for arm in comparison.arms}
    print("FVU at L0 16:", ", ".join(f"{name} {value:.3f}" for name, value in fvu.items()))
    assert fvu["pursuit"] < fvu["refit"] < fvu["encoder"]

    # Where its latents are most active, to read in a browser: one file, no network.
    page = write_dictionary_report(folder / "report.html", run.dictionary, store, lm, evaluation)
    print("Page:", page)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        main(Path(tempfile.mkdtemp(prefix="sparsight-")))
