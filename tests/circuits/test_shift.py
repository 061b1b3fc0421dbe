"""SHIFT where the true dictionary is known: one latent for each word, at the embeddings of the organism."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from sparsight.circuits import AbstractNodes
from sparsight.circuits.shift import (
    ChatJudge,
    DisambiguatedJudge,
    LabelJudge,
    LabelledText,
    LabelledTexts,
    PageJudge,
    PersonJudge,
    bias_in_bios,
    fit_classifier,
    organism_biographies,
    shift,
    write_page,
)
from sparsight.circuits.shift.baselines import erasing, text_eraser, without_words, word_eraser
from sparsight.circuits.shift.biographies import BIOS_PROFESSIONS
from sparsight.circuits.shift.chat import read_answer
from sparsight.circuits.shift.classifier import accuracies, fit_head, pooled_activations, score
from sparsight.circuits.shift.effects import attribute
from sparsight.circuits.shift.evidence import Evidence, read
from sparsight.circuits.shift.grammar import gendered_words, profession_words
from sparsight.circuits.shift.hypotheses import hypotheses
from sparsight.circuits.shift.judges import matched_random
from sparsight.circuits.shift.removal import ablation, keeping
from sparsight.circuits.shift.shift import active_nodes, correct, find, remove
from sparsight.codes import SparseCode
from sparsight.errors import DataError, UndefinedMetric
from sparsight.models import Site, load_model

EMBED = Site(None, "embed")
ENGLISH = {"english": 1}


class WordNodes(AbstractNodes):
    """One latent for each word, its atom the word's embedding: what an ideal dictionary would find."""

    kind = "word"

    def __init__(self, lm):
        self.reads = self.writes = EMBED
        rows = lm.model.get_input_embeddings().weight.detach()
        self.norms = rows.norm(dim=1)
        self.atoms = rows / self.norms[:, None]

    @property
    def d_in(self):
        return self.d_out

    def encode(self, x):
        best = (x @ self.atoms.T / x.norm(dim=1, keepdim=True)).argmax(dim=1, keepdim=True)
        return SparseCode(best, self.norms[best], self.n_latents)

    def offset(self, x):
        return torch.zeros_like(x)


@pytest.fixture(scope="module")
def lm():
    return load_model("organism", device="cpu")


@pytest.fixture(scope="module")
def words(lm):
    return {EMBED: WordNodes(lm)}


@pytest.fixture(scope="module")
def biased():
    return organism_biographies(80, seed=1, spurious=True, languages=ENGLISH)


@pytest.fixture(scope="module")
def test_texts():
    return organism_biographies(80, seed=2, spurious=False, heldout=True, languages=ENGLISH)


@pytest.fixture(scope="module")
def found(lm, words, biased):
    return find(lm, words, biased, site=EMBED, n_judged=40)


@pytest.fixture(scope="module")
def done(found, test_texts):
    return correct(found, LabelJudge(), test=test_texts)


def test_shift_with_the_true_dictionary_leaves_a_classifier_as_good_as_one_of_balanced_texts(done, lm, test_texts):
    record = done.record
    oracle_texts = organism_biographies(120, seed=3, spurious=False, languages=ENGLISH)
    oracle = accuracies(fit_classifier(lm, EMBED, oracle_texts), test_texts)
    assert record.original.worst_group == 0.0
    assert record.original.spurious == 1.0
    assert record.retrained.worst_group >= oracle.worst_group - 0.05
    assert record.retrained.worst_group > 0.9


def test_as_many_random_words_do_not_help(found, test_texts, done):
    chosen = {Site.parse(s): latents for s, latents in done.record.removed.items()}
    drawn = matched_random(chosen, active_nodes(found), seed=5)
    assert {s: len(v) for s, v in drawn.items()} == {s: len(v) for s, v in chosen.items()}
    assert not set(drawn[EMBED]) & set(chosen[EMBED])
    _, retrained = remove(found, drawn, test_texts)
    assert retrained.worst_group < 0.2


def test_only_names_and_pronouns_are_removed(done, lm, biased):
    ids = torch.tensor(done.record.removed["embed"])
    removed = {word.strip() for word in lm.tokens_to_strings(ids)}
    assert removed <= gendered_words(biased)
    assert {"he", "she"} <= removed


def test_ablating_the_words_is_deleting_their_embeddings(lm, words, done, test_texts):
    """Two routes to one number: latents set to 0 in the pass, and embeddings taken out of the mean by hand."""
    removed = done.record.removed["embed"]
    pooled = pooled_activations(lm, EMBED, test_texts.texts[:8], ablation(words, {EMBED: removed}))
    rows = lm.model.get_input_embeddings().weight.detach()
    tokens = lm.tokenize(test_texts.texts[:8])
    kept = tokens.counted & ~torch.isin(tokens.ids, torch.tensor(removed))
    by_hand = (rows[tokens.ids] * kept[..., None]).sum(dim=1) / tokens.counted.sum(dim=1, keepdim=True)
    torch.testing.assert_close(pooled, by_hand, atol=1e-5, rtol=1e-4)


def test_at_the_site_that_is_read_first_order_effects_are_exact_and_add_up_to_the_logit(found, biased):
    for latent, value in found.exact[EMBED].items():
        assert value == pytest.approx(float(found.effects.support[EMBED][latent]), rel=1e-3, abs=1e-5)
    x = pooled_activations(found.classifier.lm, EMBED, biased.texts)
    sign = 2.0 * biased.target_labels - 1
    total = (sign * (found.classifier.of_pooled(x) - found.classifier.bias)).double().mean()
    parts = float(found.effects.support[EMBED].sum()) + found.effects.errors[EMBED]
    assert parts == pytest.approx(float(total), rel=1e-4)


def test_a_judge_sees_the_biased_texts_and_no_other(found, biased):
    ids = {item.id for item in biased.items}
    shown = set(" ".join(biased.texts).split())
    for one in found.evidence:
        assert set(one.documents) == ids
        assert {word.word for word in one.words} <= shown
        assert set(one.promotes) | set(one.suppresses) <= shown
        for context in one.contexts:
            assert {word.strip("*") for word in context.split()} <= shown


def test_the_biased_texts_cannot_say_whether_she_counts_only_for_one_profession(done):
    """Every "she" of the biased texts stands in one class, so no token could contradict the narrower reading."""
    she = next(h for h in done.record.undecided if h.words == ["she"])
    assert she.n_word_or_context == 0
    assert not she.decided
    assert she.truth == "fires on its words, whatever the rest"


def test_a_latent_that_does_wait_for_the_class_is_told_apart_on_the_locked_texts(lm, words, biased, test_texts):
    she = int(lm.tokenize("she").ids[0, 1])
    here, there = (read(lm, words, texts, {EMBED: [she]}) for texts in (biased, test_texts))
    there.values[EMBED, she] *= (there.marks.target == 1).float()
    (found,) = hypotheses(here, there)
    assert not found.decided
    assert found.truth == "only with the target"


def test_keeping_some_words_is_deleting_all_the_others(lm, words, test_texts):
    kept = lm.tokenize("nurse teacher works").ids[0, 1:]
    pooled = pooled_activations(lm, EMBED, test_texts.texts[:8], keeping(words, {EMBED: kept.tolist()}))
    rows = lm.model.get_input_embeddings().weight.detach()
    tokens = lm.tokenize(test_texts.texts[:8])
    stay = torch.isin(tokens.ids, kept)
    by_hand = (rows[tokens.ids] * stay[..., None]).sum(dim=1) / tokens.counted.sum(dim=1, keepdim=True)
    torch.testing.assert_close(pooled, by_hand, atol=1e-5, rtol=1e-4)


def test_what_nobody_judged_can_be_removed_with_the_errors(lm, words, biased, test_texts):
    """One word is judged, and to go: without the others nothing passes the embeddings."""
    one = find(lm, words, biased, site=EMBED, n_judged=1, exact=False, ranked_by="magnitude")
    kept = correct(one, LabelJudge(), test=test_texts)
    gone = correct(one, LabelJudge(), unjudged="remove")
    assert (kept.record.unjudged, gone.record.unjudged) == ("keep", "remove")
    assert [judgement.verdict for judgement in gone.record.judgements] == ["remove"]
    assert kept.record.retrained.worst_group < 0.5
    left = [pooled_activations(lm, EMBED, biased.texts[:4], each.intervention) for each in (kept, gone)]
    assert float(left[0].abs().max()) > 0
    assert float(left[1].abs().max()) == 0


def test_serving_words_alone_leave_a_classifier_of_professions(lm, words, biased, test_texts):
    found = find(lm, words, biased, site=EMBED, n_judged=60, exact=False, ranked_by="magnitude")
    done = correct(found, LabelJudge(), test=test_texts, unclear="remove", unjudged="remove").record
    assert done.retrained.worst_group > 0.9


def test_nodes_that_speak_against_the_classifier_are_found_by_magnitude(found):
    effects = found.effects
    support, size = (effects.strongest(500, by)[EMBED] for by in ("support", "magnitude"))
    assert set(support) < set(size)
    assert all(float(effects.support[EMBED][j]) <= 0 for j in set(size) - set(support))
    assert size == sorted(size, key=lambda j: -float(effects.magnitude[EMBED][j]))


def test_data_that_decide_agree_with_the_labels_on_gendered_words(found, lm, biased):
    balanced = organism_biographies(120, seed=4, spurious=False, languages=ENGLISH)
    judge = DisambiguatedJudge.of(read(lm, found.nodes, balanced, found.candidates))
    by_words = {e.words[0].word: judge(e, "", ("a", "b")) for e in found.evidence}
    assert by_words["she"].verdict == "remove"
    assert by_words["nurse"].verdict == "keep" if "nurse" in by_words else True
    assert by_words["she"].documents == len(biased) + 120


def test_deleting_names_and_pronouns_matches_shift_here(lm, biased, test_texts, done):
    gone = gendered_words(biased)
    without = without_words(biased, gone)
    assert not set(" ".join(without.texts).split()) & gone
    retrained = accuracies(fit_classifier(lm, EMBED, without), without_words(test_texts, gone))
    assert retrained.worst_group == pytest.approx(done.record.retrained.worst_group, abs=0.1)


def test_erasing_what_goes_with_the_target_erases_the_target(lm, biased, test_texts):
    """On fully spurious texts gender and target have the same labels: LEACE leaves nothing linear of either."""
    eraser = text_eraser(lm, EMBED, biased)
    x = pooled_activations(lm, EMBED, biased.texts, erasing(eraser, EMBED)).double()
    target = biased.target_labels
    gap = x[target == 1].mean(dim=0) - x[target == 0].mean(dim=0)
    assert float(gap.norm()) < 1e-4
    # Names and pronouns as token classes can be erased without the target.
    words_only = erasing(word_eraser(lm, EMBED, biased), EMBED)
    retrained = accuracies(fit_classifier(lm, EMBED, biased, words_only), test_texts, words_only)
    assert retrained.worst_group > 0.5


def test_accuracies_are_those_of_the_cells():
    items = tuple(LabelledText(i, "x", t, s) for i, (t, s) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]))
    texts = LabelledTexts(items, "target", "other", ("a", "b"), ("m", "f"))
    by_other = score(torch.tensor([-1.0, 1.0, -1.0, 1.0]), texts)
    assert (by_other.accuracy, by_other.worst_group, by_other.spurious) == (0.5, 0.0, 1.0)
    assert by_other.groups == {"a, m": 1.0, "a, f": 0.0, "b, m": 0.0, "b, f": 1.0}


def test_the_head_is_the_optimum_of_its_objective():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=g) * torch.tensor([1.0, 10.0, 0.1]) + 2
    target = (x[:, 0] + 0.5 * torch.randn(80, generator=g) > 2).long()
    weight, bias = fit_head(x, target, l2=0.5)
    spread = x.double().std(dim=0)
    z = (x.double() - x.double().mean(dim=0)) / spread
    w = (weight.double() * spread).requires_grad_()
    b = (bias + x.double().mean(dim=0) @ weight.double()).detach().requires_grad_()
    loss = torch.nn.functional.softplus(-(2 * target - 1) * (z @ w + b)).sum() + 0.25 * w.square().sum()
    for gradient in torch.autograd.grad(loss, [w, b]):
        assert float(gradient.abs().max()) < 1e-2


def test_profession_words_leave_out_what_biographies_share():
    words = profession_words()
    assert {"nurse", "university", "bouquets", "krankenschwester"} <= words
    assert not {"a", "at", "the", "works", "she", "patient"} & words


def an_evidence():
    return Evidence(
        site="embed", latent=3, kind="latent", effect=1.0, density=0.1, class_means=(0.0, 1.0),
        words=[{"word": "she", "share": 1.0, "mean": 1.0, "n": (0, 5)}],
        contexts=["then **she** works"], promotes=[], suppresses=[], documents=[1, 2],
    )  # fmt: skip


class Endpoint(BaseHTTPRequestHandler):
    """Answers like a chat endpoint; what it says and what it was asked are kept on the server."""

    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        said = self.server.answers.pop(0)
        self.send_response(200 if said is not None else 401)
        self.end_headers()
        if said is not None:
            self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def endpoint():
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    server.asked, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_language_model_judges_through_a_chat_endpoint(endpoint):
    server, address = endpoint
    server.answers = ["no idea", 'Sure: {"verdict": "remove", "confidence": 0.9, "reason": "a pronoun"}']
    found = ChatJudge(address, "stub")(an_evidence(), "tell the profession", ("doctor", "nurse"))
    assert (found.verdict, found.confidence, found.reason, found.documents) == ("remove", 0.9, "a pronoun", 2)
    asked = server.asked[-1]
    assert asked["model"] == "stub"
    assert asked["temperature"] == 0
    assert "tell the profession" in asked["messages"][0]["content"]
    assert "**she**" in asked["messages"][1]["content"]


def test_a_chat_endpoint_that_fails_is_named(endpoint):
    server, address = endpoint
    server.answers = [None, "nothing", "nothing"]
    judge = ChatJudge(address, "stub")
    with pytest.raises(DataError, match="refused with status 401"):
        judge(an_evidence(), "task", ("a", "b"))
    with pytest.raises(DataError, match="gave no verdict"):
        judge(an_evidence(), "task", ("a", "b"))
    with pytest.raises(DataError, match="cannot be reached"):
        ChatJudge("http://127.0.0.1:9", "stub", timeout=2)(an_evidence(), "task", ("a", "b"))
    with pytest.raises(ValueError, match="http"):
        ChatJudge("127.0.0.1", "stub")


@pytest.mark.parametrize("said", ["", "{", "[]", '{"verdict": "maybe"}', '{"verdict": "keep", "confidence": "high"}'])
def test_what_is_no_verdict_is_not_read_as_one(said):
    assert read_answer(said) is None


def test_a_person_is_asked_until_the_answer_is_one():
    said, shown = iter(["what", "R"]), []
    found = PersonJudge(ask=lambda _: next(said), show=shown.append)(an_evidence(), "tell it", ("a", "b"))
    assert found.verdict == "remove"
    assert any("**she**" in line for line in shown)


def test_answers_saved_from_a_page_are_the_judgements(tmp_path):
    file = tmp_path / "answers.json"
    file.write_text('{"answers": [{"site": "embed", "latent": 3, "verdict": "keep"}]}')
    assert PageJudge(file)(an_evidence(), "tell it", ("a", "b")).verdict == "keep"
    file.write_text('{"answers": [{"site": "embed", "latent": 4, "verdict": "keep"}]}')
    with pytest.raises(DataError, match="says nothing of latent 3 at embed"):
        PageJudge(file)(an_evidence(), "tell it", ("a", "b"))
    file.write_text('{"answers": [{"site": "embed", "latent": 3, "verdict": "maybe"}]}')
    with pytest.raises(DataError, match="holds no answers"):
        PageJudge(file)(an_evidence(), "tell it", ("a", "b"))
    with pytest.raises(DataError, match="cannot read the answers"):
        PageJudge(tmp_path / "none.json")(an_evidence(), "tell it", ("a", "b"))


def test_a_page_shows_the_evidence_as_text(tmp_path):
    write_page([an_evidence()], "tell <it>", ("a & b", "c"), tmp_path / "judge.html")
    page = (tmp_path / "judge.html").read_text()
    assert "tell &lt;it&gt; (a &amp; b or c)" in page
    assert 'data-site="embed" data-latent="3"' in page
    assert "**she**" in page
    assert "http" not in page


def test_biographies_come_from_a_file_of_the_public_schema(tmp_path):
    numbers = {name: BIOS_PROFESSIONS.index(name) for name in ("professor", "nurse", "poet")}
    rows = [
        {"hard_text": f"{name} {gender} {i}", "profession": numbers[name], "gender": gender}
        for i in range(6)
        for name in numbers
        for gender in (0, 1)
    ]
    file = tmp_path / "bios.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    biased = bias_in_bios(file, 8, seed=0, spurious=True)
    assert biased.cells == {(0, 0): 4, (1, 1): 4}
    assert {(text.split()[0], item.target) for text, item in zip(biased.texts, biased.items, strict=True)} == {
        ("professor", 0),
        ("nurse", 1),
    }
    assert bias_in_bios(file, 8, seed=0, spurious=False).cells == {(t, s): 2 for t in (0, 1) for s in (0, 1)}
    with pytest.raises(DataError, match="too few texts"):
        bias_in_bios(file, 40, seed=0, spurious=True)
    with pytest.raises(ValueError, match="professions must be two of"):
        bias_in_bios(file, 8, seed=0, spurious=True, professions=("nurse", "astronaut"))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "x"}))
    with pytest.raises(DataError, match="no column 'hard_text'"):
        bias_in_bios(other, 8, seed=0, spurious=True)


def test_what_shift_cannot_do_is_refused(lm, words, found, biased, test_texts):
    with pytest.raises(ValueError, match="must not tell profession from gender"):
        shift(lm, words, test_texts, LabelJudge(), site=EMBED)
    with pytest.raises(ValueError, match="unclear must be"):
        correct(found, LabelJudge(), unclear="ask")
    with pytest.raises(ValueError, match="unjudged must be"):
        correct(found, LabelJudge(), unjudged="ask")
    with pytest.raises(ValueError, match=r"nothing stands at 0\.resid_post"):
        keeping(words, {Site(0, "resid_post"): [1]})
    with pytest.raises(ValueError, match="n_judged"):
        shift(lm, words, biased, LabelJudge(), site=EMBED, n_judged=0)
    with pytest.raises(ValueError, match="come after it"):
        attribute(found.classifier, {Site(0, "resid_post"): words[EMBED]}, biased)
    with pytest.raises(ValueError, match="no labels"):
        LabelJudge()(an_evidence(), "task", ("a", "b"))
    with pytest.raises(ValueError, match="multiple of 4"):
        organism_biographies(6, seed=0, spurious=True)
    with pytest.raises(UndefinedMetric, match="both classes"):
        fit_head(torch.randn(4, 2), torch.zeros(4, dtype=torch.int64))
