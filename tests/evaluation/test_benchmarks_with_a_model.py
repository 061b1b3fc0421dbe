"""Benchmarks that act on a model: a model small enough that the answer is known, and the organism end to end."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from evaluation_fake import MemoryStore

from sparsight.activations import harvest
from sparsight.codes import SparseCode
from sparsight.dictionaries import TopK
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation.benchmarks import (
    Exam,
    Prompts,
    Pushing,
    draw_tokens,
    interchange,
    pool_documents,
    run_suite,
    unlearning,
    write_saebench,
)
from sparsight.evaluation.benchmarks.examples import labels_of
from sparsight.evaluation.benchmarks.interchange import Outcome
from sparsight.evaluation.benchmarks.layout import of_benchmark
from sparsight.evaluation.benchmarks.unlearning import chosen
from sparsight.models import Site, Tokens, load_model, organism

SITE = Site.parse("0.resid_post")
N_A, N_B = 3, 2


class TwoAttributes:
    """The token `i` writes one hot vectors of its two attributes; the answer is read off the last activation.

    Tokens `2 .. 7` stand for the six pairs of values; the answer to pair `i` is token `10 + i`.
    """

    name, family, has_causal_loss = "toy", "toy", True
    device = torch.device("cpu")

    def activations(self, tokens, sites):
        pair = (tokens.ids - 2).clamp(0, 5)
        x = torch.cat([torch.eye(N_A)[pair // N_B], torch.eye(N_B)[pair % N_B]], dim=-1)
        return dict.fromkeys(sites, x)

    def logits(self, tokens, *, edits=None):
        x = self.activations(tokens, [SITE])[SITE]
        for edit in (edits or {}).values():
            x = edit(x)
        score = x[..., :N_A, None] + x[..., None, N_A:]
        out = torch.full((*x.shape[:2], 20), -10.0)
        out[..., 10:16] = 5 * score.flatten(-2)
        return out


def one_latent_for_each_coordinate():
    made = TopK(N_A + N_B, 2).build(N_A + N_B, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.atoms.copy_(torch.eye(N_A + N_B))
        made.W_enc.copy_(torch.eye(N_A + N_B))
        made.b_enc.zero_()
        made.b_dec.zero_()
    return made


def toy_prompts(n: int = 120) -> Prompts:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 8, (n, 3), generator=g)
    real = torch.ones(n, 3, dtype=torch.bool)
    pair = ids[:, 2] - 2
    attributes = torch.stack([pair // N_B, pair % N_B], dim=1)
    answers = 10 + torch.arange(6).view(N_A, N_B)
    return Prompts(Tokens(ids, real, ~real), torch.full((n,), 2), attributes, answers, torch.arange(n), ("a", "b"))


def test_latents_that_hold_one_attribute_are_exchanged_without_the_other():
    prompts = toy_prompts()
    found = interchange(
        TwoAttributes(), one_latent_for_each_coordinate(), SITE, [prompts], [torch.arange(80)], n_train=64, n_test=64
    )
    score = {s.name.split(":")[0]: s for s in found.scores}
    assert score["cause"].value.value == score["isolation"].value.value == 1
    assert score["cause"].floors["nothing"] == 0
    assert score["isolation"].floors["all latents"] == 0
    assert score["disentanglement"].ceilings["span of class means"] == 1
    size = {row["attribute"]: row["latents"] for row in found.details if row["arm"] == "mask"}
    assert size == {"a": N_A, "b": N_B}


def test_outcomes_are_read_off_the_table_of_answers():
    base, source = torch.tensor([[0, 0], [0, 0], [0, 0]]), torch.tensor([[2, 1], [2, 1], [2, 1]])
    answered = torch.tensor([2 * N_B + 0, 2 * N_B + 1, 0])  # exchanged alone; everything exchanged; nothing
    found = Outcome.of(answered, base, source, N_B, 0)
    assert found.cause.tolist() == [True, True, False]
    assert found.isolation.tolist() == [True, False, True]


def test_answers_that_share_a_token_are_refused():
    prompts = toy_prompts()
    with pytest.raises(ValueError, match="two answers share a token"):
        Prompts(
            prompts.tokens,
            prompts.last,
            prompts.attributes,
            torch.zeros(3, 2, dtype=torch.int64),
            prompts.documents,
            ("a", "b"),
        )


class TwoSkills:
    """After token 1 comes 11 if coordinate 0 is up, after token 2 comes 12 if coordinate 1 is."""

    name, family, has_causal_loss = "toy", "toy", True
    device = torch.device("cpu")

    def activations(self, tokens, sites):
        x = torch.stack([(tokens.ids == 1).float(), (tokens.ids == 2).float(), (tokens.ids > 0).float()], dim=-1)
        return dict.fromkeys(sites, x)

    def logits(self, tokens, *, edits=None):
        x = self.activations(tokens, [SITE])[SITE]
        for edit in (edits or {}).values():
            x = edit(x)
        out = torch.zeros(*x.shape[:2], 20)
        out[..., 0] = 0.5
        out[..., 11], out[..., 12] = x[..., 0], x[..., 1]
        return out


def exam(first: int, n: int = 20) -> Exam:
    ids = torch.tensor([[first, first + 10, 5]]).repeat(n, 1)
    real = torch.ones(n, 3, dtype=torch.bool)
    asked = torch.zeros(n, 2, dtype=torch.bool)
    asked[:, 0] = True
    return Exam(Tokens(ids, real, ~real), asked, torch.arange(n))


def three_latents():
    made = TopK(3, 3).build(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.atoms.copy_(torch.eye(3))
        made.W_enc.copy_(torch.eye(3))
        made.b_enc.zero_()
        made.b_dec.zero_()
    return made


def test_a_skill_that_is_one_latent_is_unlearnt_and_the_other_kept():
    found = unlearning(
        TwoSkills(),
        three_latents(),
        SITE,
        (exam(1), exam(1)),
        (exam(2), exam(2)),
        grid=[Pushing(0.01, 1, 1.0), Pushing(1.0, 3, 1.0)],
    )
    forgotten, kept = found.scores
    assert forgotten.value.value == kept.value.value == 1
    assert forgotten.floors["nothing"] == 0
    assert found.metrics["unlearning"]["unlearning_score"] == 1
    assert "n=1" in str(found.settings["chosen"])


def test_a_setting_that_costs_the_other_skill_is_not_chosen():
    found = unlearning(
        TwoSkills(), three_latents(), SITE, (exam(1), exam(1)), (exam(1), exam(1)), grid=[Pushing(1.0, 1, 1.0)]
    )
    assert found.scores[0].value.value == 0
    assert "no setting forgets anything" in found.left_out[0]


def test_latents_are_taken_that_are_rare_where_nothing_may_be_lost():
    forget, retain = torch.tensor([0.9, 0.5, 0.7, 0.0]).double(), torch.tensor([0.5, 0.0, 0.005, 0.0]).double()
    assert chosen(forget, retain, Pushing(0.01, 5, 1.0)).tolist() == [2, 1]
    assert chosen(forget, retain, Pushing(0.001, 5, 1.0)).tolist() == [1]


def test_a_model_without_the_skill_has_nothing_to_unlearn():
    with pytest.raises(UndefinedMetric, match="nothing to unlearn"):
        unlearning(TwoSkills(), three_latents(), SITE, (exam(3), exam(3)), (exam(2), exam(2)), grid=[])


# examples


def identity_code(x):
    return SparseCode.from_dense(x)


def labelled_store() -> MemoryStore:
    ids = torch.arange(12).repeat_interleave(5)
    x = torch.arange(60).float()[:, None].repeat(1, 2)
    return MemoryStore(x, ids, {"kind": ids % 2, "other": torch.where(torch.arange(60) % 5 == 0, -1, ids % 3)})


def test_a_document_is_the_mean_of_its_labelled_tokens():
    store = labelled_store()
    found = pool_documents(store, store.sites[0], identity_code, ["kind", "other"], 2)
    assert found.documents.tolist() == list(range(12))
    assert found.x[3, 0].item() == pytest.approx(sum(range(16, 20)) / 4)
    assert found.y[3].tolist() == [1, 0]


def test_tokens_are_drawn_evenly_from_both_groups():
    store = labelled_store()
    known = labels_of(store, ["kind"])
    found = draw_tokens(store, store.sites[0], identity_code, known, lambda y: y[:, 0], 7)
    assert torch.bincount(found.y[:, 0]).tolist() == [7, 7]
    assert (found.x[:, 0].long() // 5 % 2 == found.y[:, 0]).all()


def test_labels_that_do_not_fit_the_tokens_are_refused():
    store = labelled_store()
    store._labels["kind"] = store._labels["kind"][:-3]
    with pytest.raises(DataError, match="labels must be one for each of 60 rows"):
        labels_of(store, ["kind"])
    with pytest.raises(DataError, match="no label colour; it has kind, other"):
        labels_of(store, ["colour"])


# the organism


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    lm = load_model("organism", device="cpu")
    site = Site.parse("2.resid_post")
    documents = itertools.islice(organism.corpus(71, 400, domains={"biography": 6, "numbers": 1, "days": 1}), 400)
    store = harvest(lm, documents, [site], tmp_path_factory.mktemp("bench") / "s", n_tokens=16_000, heldout=0.3)
    made = TopK(128, 8).build(lm.width(site), torch.Generator().manual_seed(5))
    x = store.split("train").rows(site, slice(0, 5000))
    with torch.no_grad():
        made.b_dec.copy_(x.mean(dim=0))
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(6))[:128]
        made.atoms.copy_(torch.nn.functional.normalize(x[rows] - made.b_dec, dim=1))
        made.W_enc.copy_(made.atoms.T)
    made.site, made.model = site, lm.name
    return SimpleNamespace(lm=lm, store=store, dictionary=made)


def test_the_benchmarks_of_labels_run_on_the_organism_out_of_the_box(bench, tmp_path):
    suite = run_suite(
        bench.dictionary,
        bench.store,
        names=["sparse_probing", "absorption", "scr", "tpp", "ravel"],
        n_examples=48,
        n_resamples=50,
    )
    assert [b.benchmark for b in suite.benchmarks] == ["sparse_probing", "absorption", "scr", "tpp"]
    assert [(n.benchmark, n.reason) for n in suite.not_run] == [("ravel", "no model was given to answer its prompts")]
    probing = suite.benchmarks[0]
    assert probing.scores[-1].value.value > probing.scores[-1].floors["shuffled labels"] + 0.15
    assert "not run: ravel" in suite.to_table()
    for found in suite.benchmarks:
        file = of_benchmark(found, bench.dictionary, "planted/one")
        assert all(isinstance(v, float | int) for part in file["eval_result_metrics"].values() for v in part.values())
        path = write_saebench(tmp_path, file, "planted/one")
        assert path.name == "planted_one_custom_sae_eval_results.json"


@pytest.mark.slow
def test_the_benchmarks_of_answers_run_on_the_organism(bench):
    suite = run_suite(
        bench.dictionary, bench.store, model=bench.lm, names=["ravel", "unlearning"], n_examples=32, n_resamples=50
    )
    assert [b.benchmark for b in suite.benchmarks] == ["ravel", "unlearning"]
    ravel = suite.benchmarks[0]
    assert ravel.scores[0].ceilings["span of class means"] > ravel.scores[0].floors["nothing"]


def test_unknown_benchmarks_and_stores_without_labels_are_refused(bench):
    with pytest.raises(ValueError, match="unknown benchmark 'magic'"):
        run_suite(bench.dictionary, bench.store, names=["magic"])
    with pytest.raises(DataError, match="the store has no labels"):
        run_suite(bench.dictionary, MemoryStore(torch.zeros(4, 128), torch.arange(4)))
