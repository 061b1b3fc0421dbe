"""All measurements of one dictionary, in two passes over stored activations that keep nothing but sums."""

import time
from collections.abc import Mapping, Sequence

from sparsight.dictionaries import AbstractDictionary
from sparsight.evaluation.approximate import Approximate
from sparsight.evaluation.coders import Code as Code
from sparsight.evaluation.coders import coder_of as coder_of
from sparsight.evaluation.coders import describe as describe
from sparsight.evaluation.coders import reconstruction as reconstruction
from sparsight.evaluation.measuring import Measuring, Settings
from sparsight.evaluation.reading import Predicts, StoredActivations, check_model
from sparsight.evaluation.record import Evaluation
from sparsight.evaluation.record_values import Resampling
from sparsight.evaluation.record_values import ratio as ratio
from sparsight.evaluation.splice import KnownLosses
from sparsight.evaluation.token_policy import TokenPolicy
from sparsight.models import Site


def evaluate(
    dictionary: AbstractDictionary,
    store: StoredActivations | Sequence[StoredActivations],
    *,
    model: Predicts | None = None,
    coder: str | None = None,
    k: int | None = None,
    search: Approximate | None = None,
    split: str = "heldout",
    site: Site | str | None = None,
    n_tokens: int | None = None,
    loss_tokens: int | None = 65_536,
    shrinkage_tokens: int = 0,
    gap_tokens: int = 65_536,
    baseline_tokens: int = 8_192,
    random_model_tokens: int = 0,
    by: Sequence[str] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    policy: TokenPolicy | None = None,
    batch_size: int = 4096,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    force: bool = False,
    known: KnownLosses | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure a dictionary: sparsity, reconstruction, density, shrinkage, and the loss it adds to the model.

    Two passes over the rows: the first for their mean and median norm, the second for everything else. Memory does not
    grow with the number of rows: sums are kept for at most 8,192 groups of documents. Beside the numbers stand what
    baselines score on the same tokens, the gap to training documents, the kinds of token that would change the
    headline, and identities that the numbers must obey.

    A transcoder is measured by what it makes of its input against the output of the module, and its loss is that of the
    model with the transcoder in the module's place. A crosscoder is measured on all its sites together, each in the
    units of its training so that all weigh alike, and its FVU also at each.

    Args:
        dictionary: Takes raw activations, as `train` and `load_dictionary` give it.
        store: Activations with their documents; for a crosscoder of several models one store for each site.
        model: The model they came from, for the loss. A model without a next-token loss is noted, not refused.
        coder: None for the dictionary's own code; else the name of an arm of `compare_coders`, with `k`.
        k: Latents per token, with `coder`.
        search: None for the exact search of a pursuit; an approximate one is recorded, with its cost on a sample.
        split: "heldout", "train", or "all".
        site: Where, if not at the dictionary's own site.
        n_tokens: Measure on about this many tokens, spread evenly; all when None.
        loss_tokens: The same for the loss.
        shrinkage_tokens: The same for the panel that says where shrinkage is and of which kind. 0 leaves it out: it
            refits every code, at several times the cost of coding.
        gap_tokens: Training tokens for the held-out gap; 0 leaves it out.
        baseline_tokens: Tokens for the baselines; 0 leaves them out.
        random_model_tokens: Tokens to train two further baselines on: a dictionary of this kind on this model, and one
            on the model with its weights drawn anew. 0 leaves them out.
        by: What to break the tokens down by: "position", "norm", names of labels. Default: position, norm, and the
            label "domain" where there is one.
        classes: Names of the classes of labels; numbers are used where absent.
        policy: Which stored tokens count in sparsity and reconstruction; all when None. The loss replaces and counts
            every stored token.
        batch_size: Rows coded at once.
        n_resamples: Draws of the bootstrap over documents.
        level: Nominal coverage of the intervals.
        seed: Of the bootstrap.
        force: Measure though the dictionary was made for another site or model.
        known: Losses of the clean and of the ablated model, from earlier calls with the same store, site, split,
            `n_tokens` and `loss_tokens`; those found here are added.
        progress: Show a bar on stderr.
    Returns:
        Every number with its convention; `.to_json()`, `.to_table()`.
    Raises:
        ValueError: widths differ, or an argument is out of range.
        DataError: the store lacks the site or the split, or the dictionary was made for another site or model.
        UndefinedMetric: the activations do not vary, or with `random_model_tokens` nothing can be trained.
    """
    began = time.perf_counter()
    settings = Settings(
        coder=coder,
        k=k,
        search=search,
        split=split,
        n_tokens=n_tokens,
        loss_tokens=loss_tokens,
        shrinkage_tokens=shrinkage_tokens,
        gap_tokens=gap_tokens,
        baseline_tokens=baseline_tokens,
        random_model_tokens=random_model_tokens,
        by=by,
        classes=classes or {},
        policy=policy or TokenPolicy(),
        batch_size=batch_size,
        seed=seed,
        force=force,
        known=known,
        progress=progress,
    )
    measuring = Measuring(dictionary, store, site, settings, Resampling(n_resamples, level, seed))
    if model is not None:
        check_model(model, measuring.part, force=force)
    measuring.pass_over_rows()
    return measuring.record(model, began)
