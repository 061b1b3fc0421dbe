"""A model with activations to study: the organism with its labels, or any model with texts; and dictionaries for it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from sparsight.activations import ActivationStore, documents_from_files, harvest
from sparsight.dictionaries import AbstractDictionary, DictionaryConfig
from sparsight.models import LanguageModel, Site, load_model, organism
from sparsight.studies.work import Work
from sparsight.training import Training, train

CORPUS_SEED = 1  # documents of seed 0 taught the organism; these it has not seen


@dataclass(frozen=True)
class Subject:
    """What a study looks at.

    Attributes:
        lm: The model.
        site: Where it is read: after its middle layer.
        store: Activations there, with labels for the organism; train and held-out parts share no document.
    """

    lm: LanguageModel
    site: Site
    store: ActivationStore


def is_organism(work: Work) -> bool:
    """Whether the study's model brings its own corpus and labels."""
    return work.options.model.startswith("organism")


def subject(
    work: Work,
    *,
    n_tokens: int,
    heldout: float = 0.2,
    documents_as: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Subject:
    """Harvest the study's model once; a resumed study finds the store as it left it.

    Args:
        work: Names the model and its texts.
        n_tokens: Activations to store.
        heldout: Share of the documents held out.
        documents_as: Changes the documents on their way in: more labels, say.
    Raises:
        ValueError: a model other than the organism was named without texts, or texts with the organism.
    """
    options = work.options
    if is_organism(work) != (not options.texts):
        raise ValueError(
            "give --text FILE with a --model of your own, and neither for the organism, which brings its own corpus; "
            f"got model {options.model!r} and {len(options.texts)} texts"
        )
    lm = load_model(options.model, device=options.device)
    site = Site(lm.n_layers // 2, "resid_post")
    documents: Iterable[Any] = (
        documents_from_files(options.texts)
        if options.texts
        else (d for start in count(0, 1000) for d in organism.corpus(CORPUS_SEED, 1000, start=start))
    )
    work.say(f"activations of {lm.name} at {site}")
    store = harvest(
        lm,
        documents if documents_as is None else documents_as(documents),
        [site],
        work.scratch("activations"),
        n_tokens=n_tokens,
        context=min(128, lm.max_context),
        heldout=heldout,
        resume=True,
        progress=work.progress,
    )
    return Subject(lm, site, store)


def trained(
    work: Work, on: Subject, configs: Sequence[DictionaryConfig], training: Training, *, folder: str = "dictionaries"
) -> list[AbstractDictionary]:
    """Dictionaries trained on the subject's training documents; finished ones are read, cut ones go on."""
    work.say(f"dictionaries: {', '.join(config.run_name for config in configs)}")
    runs = train(
        on.store,
        list(configs),
        training,
        out=work.scratch(folder),
        resume=True,
        device=work.options.device,
        progress=work.progress,
    )
    return [run.dictionary for run in runs]
