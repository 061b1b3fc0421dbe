"""The real store, the real model and a real dictionary through all three entry points."""

import itertools

import pytest
import torch

from sparsight.activations import ActivationStore, harvest
from sparsight.dictionaries import TopK, TopKDictionary
from sparsight.evaluation import best_latents, compare_coders, evaluate, metrics
from sparsight.models import LanguageModel, Site, load_model, organism

SITE = Site.parse("1.resid_post")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def store(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    documents = itertools.islice(organism.corpus(7, 400), 400)
    return harvest(lm, documents, [SITE], tmp_path_factory.mktemp("store") / "s", n_tokens=4000, heldout=0.3)


@pytest.fixture(scope="module")
def dictionary(lm: LanguageModel, store: ActivationStore) -> TopKDictionary:
    """Atoms drawn from the training activations themselves: no training needed to code held-out ones well."""
    made = TopK(256, 8).build(lm.width(SITE), torch.Generator().manual_seed(0))
    train = store.split("train")
    x = train.rows(SITE, slice(0, len(train)))
    with torch.no_grad():
        made.b_dec.copy_(x.mean(dim=0))
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:256]
        made.atoms.copy_(torch.nn.functional.normalize(x[rows] - made.b_dec, dim=1))
        made.W_enc.copy_(made.atoms.T)
    made.site, made.model = SITE, lm.name
    return made


def test_an_evaluation_of_held_out_documents_agrees_with_the_arrays(lm, store, dictionary):
    result = evaluate(dictionary, store, model=lm)
    heldout = store.split("heldout")
    x = heldout.rows(SITE, slice(0, len(heldout)))
    with torch.no_grad():
        expected = metrics.fvu(x, dictionary(x))
    assert result.fvu.value == pytest.approx(expected, rel=1e-6)
    assert result.n_tokens == len(heldout)
    assert result.l0.mean.value <= 8
    assert result.loss is not None
    # The clean loss is the model's own, over the tokens that are counted.
    losses, counted = [], []
    for batch in heldout.context_batches(16):
        losses.append(lm.loss(batch.tokens, reduction="none")[batch.tokens.counted[:, 1:]])
        counted.append(batch.tokens.counted[:, 1:].sum())
    assert result.loss.clean == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert result.loss.n_tokens == int(torch.stack(counted).sum())
    assert 0 < result.loss.added.value < result.loss.added_by_mean.value


def test_coders_of_a_real_dictionary_keep_their_order(lm, store, dictionary):
    found = compare_coders(dictionary, store, [8], model=lm, loss_tokens=500)
    fvu = {arm.arm: arm.fvu.value for arm in found.arms}
    assert fvu["pursuit"] < fvu["refit"] < fvu["encoder"]
    assert all(difference.fvu.high < 0 for difference in found.differences)
    assert all(arm.loss_added is not None for arm in found.arms)


def test_labelled_features_of_the_corpus_have_rows(store, dictionary):
    classes = {name: feature.classes for name, feature in organism.FEATURES.items()}
    table = best_latents(dictionary, store, classes=classes)
    assert {row.feature for row in table.rows} <= set(organism.FEATURES)
    assert max(row.auroc for row in table.rows) > 0.8
    assert all(row.label in classes[row.feature] for row in table.rows)
