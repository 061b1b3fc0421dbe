"""Examples and statistics found by streaming, against brute force over the dense code."""

from dataclasses import dataclass

import pytest
import torch

from sparsight.codes import SparseCode
from sparsight.interpretation import latent_statistics, pick_latents, top_contexts
from sparsight.interpretation.statistics import value_histograms
from sparsight.models import Site

SITE = Site.parse("1.resid_post")


@dataclass
class Rows:
    token_ids: torch.Tensor
    document_ids: torch.Tensor
    positions: torch.Tensor


class MemoryStore:
    """Activations held in memory; the activation of a row is the row's own number, so a code can be looked up by it."""

    def __init__(self, documents: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        self.documents = documents
        first = torch.searchsorted(documents, documents)
        self.positions = torch.arange(len(documents)) - first if positions is None else positions
        self.sites = [SITE]
        self.most_rows_read = 0

    def __len__(self) -> int:
        return len(self.documents)

    def rows(self, site, rows):
        numbers = torch.arange(len(self))[rows].float()[:, None]
        self.most_rows_read = max(self.most_rows_read, len(numbers))
        return numbers

    def tokens(self, rows):
        return Rows(torch.arange(len(self))[rows], self.documents[rows], self.positions[rows])


class TableDictionary(torch.nn.Module):
    """Codes row i of a `MemoryStore` with row i of a table."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = SparseCode.from_dense(table)
        self.atoms = torch.nn.Parameter(torch.ones(table.shape[1], 1))
        self.n_latents = table.shape[1]
        self.site = SITE

    def encode(self, x):
        return self.table[x[:, 0].long()]


def words(ids: torch.Tensor) -> list[str]:
    return [f"w{i}" for i in ids.tolist()]


def random_case(seed: int, n: int = 600, n_latents: int = 30) -> tuple[torch.Tensor, TableDictionary, MemoryStore]:
    g = torch.Generator().manual_seed(seed)
    table = torch.rand(n, n_latents, generator=g) * (torch.rand(n, n_latents, generator=g) < 0.1)
    documents = torch.randint(0, 25, (n,), generator=g).sort().values
    return table, TableDictionary(table), MemoryStore(documents)


@pytest.mark.parametrize("batch_size", [1, 37, 4096])
def test_the_strongest_place_of_each_document_is_found_as_by_brute_force(batch_size):
    table, dictionary, store = random_case(0, n=300)
    found = top_contexts(
        dictionary, store, range(30), tokens_to_strings=words, n_contexts=5, window=3, batch_size=batch_size
    )
    for latent in range(30):
        best = {}
        for row in range(len(store)):
            document, value = int(store.documents[row]), float(table[row, latent])
            best[document] = max(best.get(document, 0.0), value)
        expected = sorted((v for v in best.values() if v > 0), reverse=True)[:5]
        assert [e.values[e.peak] for e in found[latent]] == pytest.approx(expected)
        assert len({e.document for e in found[latent]}) == len(found[latent])


def test_every_token_of_a_window_carries_the_value_of_its_own_row():
    table, dictionary, store = random_case(1)
    for latent, examples in top_contexts(dictionary, store, [4, 9], tokens_to_strings=words, window=6).items():
        for example in examples:
            rows = [int(token[1:]) for token in example.tokens]
            assert list(example.values) == pytest.approx(table[rows, latent].tolist())
            assert {int(store.documents[row]) for row in rows} == {example.document}
            assert int(store.positions[rows[example.peak]]) == example.position
            assert rows == list(range(rows[0], rows[0] + len(rows)))


def test_a_window_ends_where_its_document_does_and_says_when_text_was_cut():
    documents = torch.tensor([0] * 4 + [1] * 9 + [2] * 2)
    table = torch.zeros(15, 2)
    table[0, 0], table[8, 0], table[14, 0] = 1.0, 3.0, 2.0
    found = top_contexts(TableDictionary(table), MemoryStore(documents), [0], tokens_to_strings=words, window=3)[0]
    assert [e.tokens[e.peak] for e in found] == ["w8", "w14", "w0"]
    middle, last, first = found
    assert middle.tokens == ("w5", "w6", "w7", "w8", "w9", "w10", "w11")
    assert (middle.cut_before, middle.cut_after) == (True, True)
    assert last.tokens == ("w13", "w14")
    assert (last.cut_before, last.cut_after) == (False, False)
    assert first.tokens == ("w0", "w1", "w2", "w3")
    assert (first.cut_before, first.cut_after, first.peak) == (False, False, 0)


def test_a_gap_in_the_positions_of_a_document_ends_a_window():
    positions = torch.tensor([0, 1, 2, 7, 8])
    table = torch.zeros(5, 1)
    table[1, 0] = 1.0
    store = MemoryStore(torch.zeros(5, dtype=torch.int64), positions)
    (example,) = top_contexts(TableDictionary(table), store, [0], tokens_to_strings=words, window=4)[0]
    assert example.tokens == ("w0", "w1", "w2")
    assert (example.cut_before, example.cut_after) == (False, True)  # the document goes on, in another context


def test_one_long_document_gives_several_places_that_do_not_overlap():
    table = torch.zeros(200, 1)
    table[[50, 52, 100, 150], 0] = torch.tensor([9.0, 8.0, 7.0, 6.0])
    store = MemoryStore(torch.zeros(200, dtype=torch.int64))
    found = top_contexts(TableDictionary(table), store, [0], tokens_to_strings=words, n_contexts=8, window=5)[0]
    assert [e.tokens[e.peak] for e in found] == ["w50", "w100", "w150"]


def test_neighbouring_short_documents_are_each_shown():
    table = torch.ones(6, 1)
    store = MemoryStore(torch.tensor([0, 0, 1, 1, 2, 2]))
    found = top_contexts(TableDictionary(table), store, [0], tokens_to_strings=words, window=24)[0]
    assert [e.document for e in found] == [0, 1, 2]


def test_a_silent_latent_has_no_contexts():
    table = torch.zeros(5, 2)
    table[0, 1] = 1.0
    store = MemoryStore(torch.zeros(5, dtype=torch.int64))
    assert top_contexts(TableDictionary(table), store, [0], tokens_to_strings=words) == {0: []}


def test_no_read_is_larger_than_a_batch():
    _, dictionary, store = random_case(2)
    top_contexts(dictionary, store, range(30), tokens_to_strings=words, window=4, batch_size=64)
    assert store.most_rows_read <= 64


@pytest.mark.parametrize("latents", [[0, 0], [30], [-1]])
def test_a_latent_that_is_repeated_or_outside_is_refused(latents):
    _, dictionary, store = random_case(3)
    with pytest.raises(ValueError, match="latents must"):
        top_contexts(dictionary, store, latents, tokens_to_strings=words)


@pytest.mark.parametrize("batch_size", [1, 64, 4096])
def test_statistics_are_those_of_the_dense_code(batch_size):
    table, dictionary, store = random_case(4)
    statistics = latent_statistics(dictionary, store, batch_size=batch_size)
    torch.testing.assert_close(statistics.count, (table != 0).sum(0))
    torch.testing.assert_close(statistics.energy, table.double().square().sum(0))
    torch.testing.assert_close(statistics.maximum, table.double().amax(0))
    assert statistics.energy_share.sum().item() == pytest.approx(1)


def test_histograms_count_every_active_token_once_and_the_maximum_in_the_last_bin():
    table, dictionary, store = random_case(5)
    statistics = latent_statistics(dictionary, store)
    histograms = value_histograms(dictionary, store, [3, 8], statistics, n_bins=10, batch_size=50)
    for latent, counts in histograms.items():
        values = table[:, latent][table[:, latent] > 0].double()
        expected = torch.histc(values, 10, 0, values.max().item()).long().tolist()
        assert counts == expected
        assert sum(counts) == int(statistics.count[latent])
        assert counts[-1] >= 1


def test_best_latents_carry_most_energy_among_those_that_are_not_dense():
    table = torch.zeros(100, 5)
    table[:, 0] = 10.0  # always on: most energy, and no context of it is worth reading
    table[:5, 1], table[5:8, 2], table[8, 3] = 1.0, 2.0, 1.0  # energies 5, 12, 1; latent 4 is dead
    statistics = latent_statistics(TableDictionary(table), MemoryStore(torch.zeros(100, dtype=torch.int64)))
    picked = pick_latents(statistics, n_best=2, n_random=9, seed=0)
    assert picked.best == (2, 1)
    assert picked.random == (0, 1, 2, 3)
    assert picked.all == [0, 1, 2, 3]


def test_random_latents_depend_on_the_seed_alone():
    _, dictionary, store = random_case(6)
    statistics = latent_statistics(dictionary, store)
    draws = [pick_latents(statistics, n_best=0, n_random=8, seed=seed).random for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 8
