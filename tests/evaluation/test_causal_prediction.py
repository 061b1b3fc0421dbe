"""Effects that are known in closed form, and coders that are right, half right and blind about them."""

import math
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
from evaluation_fake import Batch, MemoryStore, contexts, store_of_model, tiny_gpt2
from scipy.stats import spearmanr
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary, TopK
from sparsight.errors import DataError, ModelError, UndefinedMetric
from sparsight.evaluation import CausalPrediction, causal_prediction
from sparsight.evaluation.ablation import Encode
from sparsight.evaluation.agreement import Resamples, midranks, pearson, slope, spearman
from sparsight.models import Site, Tokens

SITE = Site.parse("1.resid_post")
D, VOCAB = 6, 40


@dataclass
class LinearReader:
    """Token `i` is embedded as row `i`; logits are linear in the embedding, so every effect has a closed form."""

    embedding: Tensor
    readout: Tensor
    name: str = "tiny"
    family: str = "linear"
    has_causal_loss: bool = True

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def logits(self, tokens: Tokens, *, edits: object = None) -> Tensor:
        x = self.embedding[tokens.ids]
        for edit in edits.values() if isinstance(edits, dict) else ():
            x = edit(x)
        return x @ self.readout


def orthonormal(seed: int = 0) -> AbstractDictionary:
    """Orthonormal atoms whose encoder is their transpose: the code is the projection."""
    g = torch.Generator().manual_seed(seed)
    dictionary = TopK(D, D).build(D, g).double()
    with torch.no_grad():
        dictionary.atoms.copy_(torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64)).Q)
        dictionary.W_enc.copy_(dictionary.atoms.T)
    return dictionary.requires_grad_(False)


def world(scale: float = 1e-4) -> tuple[LinearReader, AbstractDictionary, MemoryStore]:
    """Embeddings so small that effects are linear in the dose, and a read-out as sensitive to every direction.

    Where all tokens are about equally likely the Fisher matrix is that of the centred read-out over `VOCAB`: here the
    identity, so that the size of an effect is the dose.
    """
    g = torch.Generator().manual_seed(1)
    dictionary = orthonormal()
    values = scale * torch.rand(VOCAB, D, generator=g, dtype=torch.float64)
    columns = torch.cat([torch.ones(VOCAB, 1), torch.randn(VOCAB, D, generator=g)], dim=1).double()
    readout = VOCAB**0.5 * torch.linalg.qr(columns).Q[:, 1:].T
    lm = LinearReader(values @ dictionary.atoms, readout)
    batches = []
    for i in range(10):
        ids = torch.randint(0, VOCAB, (4, 9), generator=g)
        real = torch.ones_like(ids, dtype=torch.bool)
        real[-1, 6:] = False
        batches.append(Batch(Tokens(ids, real, torch.zeros_like(real)), 3 * (4 * i + torch.arange(4))))
    x = torch.cat([lm.embedding[b.tokens.ids[b.tokens.mask]] for b in batches])
    documents = torch.cat([b.document_ids[:, None].expand(4, 9)[b.tokens.mask] for b in batches])
    return lm, dictionary, MemoryStore(x, documents, contexts=batches, site=SITE)


def centred(dictionary: AbstractDictionary, store: MemoryStore, factor: float = 1.0) -> Encode:
    """The signed code of `x - mean`: here, what the dose removes."""
    mean = store.x.mean(dim=0)
    return lambda x: SparseCode.from_dense(factor * (x - mean) @ dictionary.atoms.T)


def magnitude(dictionary: AbstractDictionary, store: MemoryStore) -> Encode:
    """The absolute value of the dose."""
    mean = store.x.mean(dim=0)
    return lambda x: SparseCode.from_dense(((x - mean) @ dictionary.atoms.T).abs())


def blind() -> Encode:
    """Values that know nothing of the activation, and say that every latent is active."""
    g = torch.Generator().manual_seed(7)
    return lambda x: SparseCode.from_dense(torch.rand(len(x), D, generator=g).double() + 0.1)


@lru_cache
def judged() -> CausalPrediction:
    lm, dictionary, store = world()
    coders = {
        "exact": centred(dictionary, store),
        "half": centred(dictionary, store, 0.5),
        "magnitude": magnitude(dictionary, store),
        "blind": blind(),
    }
    return causal_prediction(
        lm, dictionary, store, coders=coders, split="all", n_tokens=160, n_resamples=200, tokens_per_context=4
    )


def test_a_coder_that_knows_the_dose_predicts_the_loss_with_slope_1_and_one_that_halves_it_with_slope_2() -> None:
    exact, half, _, blinded, projection = judged().coders
    assert exact.loss.slope.value == pytest.approx(1, abs=2e-3)
    assert half.loss.slope.value == pytest.approx(2, abs=4e-3)
    assert exact.loss.pearson.value == pytest.approx(1, abs=1e-4)
    assert half.loss.spearman.value == pytest.approx(exact.loss.spearman.value, abs=1e-12)
    assert exact.loss.spearman.value > 0.999
    # The positive half of the doses only: right where it speaks, silent elsewhere.
    assert projection.active == pytest.approx(0.5, abs=0.15)
    assert blinded.loss.slope.value < 0.9


def test_where_the_size_is_the_dose_its_magnitude_predicts_it_with_slope_1_and_a_blind_coder_not_at_all() -> None:
    record = judged()
    by_name = {coder.coder: coder.size for coder in record.coders}
    right, blinded = by_name["magnitude"], by_name["blind"].spearman
    assert right.slope.value == pytest.approx(1, abs=1e-3)
    assert right.pearson.value == pytest.approx(1, abs=1e-6)
    assert right.spearman.value == pytest.approx(1, abs=1e-3)
    assert blinded.low is not None
    assert blinded.high is not None
    assert blinded.low < 0 < blinded.high
    differences = {(d.first, d.second): d.size for d in record.differences}
    assert differences["exact", "half"].value == 0
    assert differences["magnitude", "blind"].value == pytest.approx(1 - blinded.value, abs=1e-3)
    assert differences["magnitude", "blind"].low == pytest.approx(1 - blinded.high, abs=2e-3)


def test_effects_equal_the_closed_form_of_a_linear_model() -> None:
    """One context, one latent for each token: the mean size is computed by hand from the logits."""
    lm, dictionary, store = world(scale=1.0)
    record = causal_prediction(
        lm, dictionary, store, coders={"all": blind()}, split="all", n_tokens=10_000, n_resamples=10,
        tokens_per_context=9, latents_per_token=D,
    )  # fmt: skip
    mean, sizes = store.x.mean(dim=0), []
    for batch in store.context_batches(1):
        eligible = batch.tokens.mask[:, :-1] & batch.tokens.mask[:, 1:]
        for x in lm.embedding[batch.tokens.ids[:, :-1][eligible]]:
            for atom in dictionary.atoms:
                p = (x @ lm.readout).log_softmax(0)
                q = ((x - ((x - mean) @ atom) * atom) @ lm.readout).log_softmax(0)
                sizes.append(math.sqrt(2 * max(0.0, float((p.exp() * (p - q)).sum()))))
    assert record.n_pairs == len(sizes)
    assert record.mean_size == pytest.approx(sum(sizes) / len(sizes), rel=1e-6)


def test_a_constant_dose_in_a_linear_model_is_predicted_by_nobody() -> None:
    """The sensitivity of a linear read-out to an atom does not depend on how much of it there is."""
    lm, dictionary, store = world()
    coders = {"magnitude": magnitude(dictionary, store), "blind": blind()}
    record = causal_prediction(
        lm, dictionary, store, coders=coders, dose="constant", split="all", n_tokens=160, n_resamples=200
    )
    for coder in record.coders:
        assert abs(coder.size.spearman.value) < 0.2


def test_the_same_seed_gives_the_same_record_and_a_table_and_json() -> None:
    lm = tiny_gpt2()
    store = store_of_model(lm, contexts(lm=lm), site=SITE)
    dictionary = TopK(24, 4).build(8, torch.Generator().manual_seed(0)).double().requires_grad_(False)
    one, other = (causal_prediction(lm, dictionary, store, n_tokens=40, n_resamples=50, split="all") for _ in range(2))
    assert one == other
    assert CausalPrediction.model_validate_json(one.to_json()) == one
    assert [c.coder for c in one.coders] == ["encoder", "pursuit", "projection"]
    assert one.k == 4
    assert len(one.to_table().splitlines()) == 5
    for coder in one.coders:
        for agreement in (coder.size, coder.loss):
            assert agreement.spearman.low is not None
            assert -1 <= agreement.spearman.low <= agreement.spearman.value <= 1


def test_weights_are_repetitions() -> None:
    """A pair of weight 2 counts as two pairs: against scipy and numpy on the repeated data."""
    g = torch.Generator().manual_seed(3)
    x = torch.randint(0, 5, (30,), generator=g).double()
    y = x + torch.randint(0, 4, (30,), generator=g)
    weights = torch.randint(0, 3, (2, 30), generator=g).double()
    for row in range(2):
        times = weights[row].long()
        rx, ry = x.repeat_interleave(times), y.repeat_interleave(times)
        assert float(spearman(x, y, weights)[row]) == pytest.approx(spearmanr(rx, ry).statistic, abs=1e-12)
        covariance = torch.cov(torch.stack([rx, ry]))
        expected = float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())
        assert float(pearson(x, y, weights)[row]) == pytest.approx(expected, abs=1e-12)
        assert float(slope(x, y, weights)[row]) == pytest.approx(float(covariance[0, 1] / covariance[0, 0]), abs=1e-12)
    assert midranks(torch.tensor([5.0, 1.0, 5.0]).double(), torch.ones(1, 3).double()).tolist() == [[2.5, 1.0, 2.5]]


def test_resampling_keeps_documents_whole() -> None:
    """With one value for each document, a resample's mean is a mean of document values."""
    draws = Resamples(torch.tensor([9, 9, 9, 4]), n_resamples=100, level=0.9, seed=0)
    y = torch.tensor([1.0, 1.0, 1.0, 5.0]).double()
    seen: list[float] = []

    def mean(weights: Tensor) -> Tensor:
        found = (weights * y).sum(dim=1) / weights.sum(dim=1)
        seen.extend(found.tolist())
        return found

    assert draws.estimate(mean).value == 2.0
    assert {round(value, 9) for value in seen} == {1.0, 2.0, 5.0}


def test_wrong_arguments_and_settings_that_do_not_fit_are_refused() -> None:
    lm, dictionary, store = world()
    cases = [
        (ValueError, "dose must be 'projection' or 'constant'", {"dose": "half"}),
        (ValueError, "at least 1", {"n_tokens": 0}),
        (ValueError, "none 'projection'", {"coders": {"projection": blind()}}),
    ]
    for error, match, arguments in cases:
        with pytest.raises(error, match=match):
            causal_prediction(lm, dictionary, store, split="all", **arguments)
    with pytest.raises(ModelError, match="no causal loss"):
        causal_prediction(LinearReader(lm.embedding, lm.readout, has_causal_loss=False), dictionary, store)
    with pytest.raises(DataError, match="of model other"):
        causal_prediction(
            lm, dictionary, MemoryStore(store.x, store.document_ids, contexts=store._contexts, model="other", site=SITE)
        )

    def silent(x: Tensor) -> SparseCode:
        return SparseCode(torch.zeros(len(x), 1).long(), torch.zeros(len(x), 1).double(), D)

    with pytest.raises(UndefinedMetric, match="no pair to judge"):
        causal_prediction(lm, dictionary, store, coders={"silent": silent}, split="all")
