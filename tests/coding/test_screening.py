"""The approximate search: exact where nothing is left out, honest about what it proved, and never silent about it."""

import pytest
import torch

from sparsight.coding import GramTable, Screening, gradient_pursuit, matching_pursuit, orthogonal_matching_pursuit
from sparsight.coding.kernels.screening import ScreenedSearch

CODERS = {"gradient": gradient_pursuit, "orthogonal": orthogonal_matching_pursuit, "matching": matching_pursuit}


def problem(
    n: int = 40, n_latents: int = 500, d: int = 48, k: int = 8, noise: float = 0.1, dtype=torch.float64, twins=False
):
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(n_latents, d, generator=g, dtype=torch.float64), dim=1)
    if twins:
        half = n_latents // 2
        atoms[half : 2 * half] = atoms[:half] + 3e-4 * atoms[half : 2 * half]
        atoms = torch.nn.functional.normalize(atoms, dim=1)
    members = torch.rand(n, n_latents, generator=g).topk(k, dim=1).indices
    weights = 1 + torch.rand(n, k, generator=g, dtype=torch.float64)
    x = torch.einsum("nk,nkd->nd", weights, atoms[members])
    return (x + noise * torch.randn(n, d, generator=g, dtype=torch.float64)).to(dtype), atoms.to(dtype)


def screening(atoms, table: bool, **options) -> Screening:
    return Screening(atoms, table=GramTable(atoms) if table else None, **options)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_with_every_atom_a_candidate_and_a_scan_a_step_codes_are_those_of_the_dense_search(coder, nonnegative, table):
    """bfloat16 decides among near equals, so rows may differ: few do, and by little."""
    x, atoms = problem()
    dense = coder(x, atoms, 8, nonnegative=nonnegative, search="dense")
    search = screening(atoms, table, candidates=500, scans=8)
    fast = coder(x, atoms, 8, nonnegative=nonnegative, search=search)
    same = ((fast.to_dense() - dense.to_dense()).abs().amax(dim=1) < 1e-9).double().mean().item()
    assert same > (0.85 if table else 0.999)


@pytest.mark.parametrize("twins", [True, False])
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_choices_called_proven_are_the_best_there_are(monkeypatch, coder, nonnegative, table, twins):
    """Also of atoms so near to each other that bfloat16 cannot tell them apart."""
    x, atoms = problem(n=60, n_latents=300, k=4, twins=twins)
    checked = []
    proven_of, best_of = ScreenedSearch._proven, ScreenedSearch.best

    def best(self, indices, values, gram, alive):
        scores = (self.x - torch.einsum("bt,btd->bd", values, atoms[indices])) @ atoms.T
        scores = scores if self.nonnegative else scores.abs()
        if not self.repeats:
            scores.scatter_(1, indices, -torch.inf)
        self.true = scores.amax(dim=1)
        return best_of(self, indices, values, gram, alive)

    def proven(self, score, values, gram):
        claimed = proven_of(self, score, values, gram)
        checked.append((claimed & (self.true > 1e-9), (self.true - (score if self.nonnegative else score.abs()))))
        return claimed

    monkeypatch.setattr(ScreenedSearch, "best", best)
    monkeypatch.setattr(ScreenedSearch, "_proven", proven)
    coder(x, atoms, 6, nonnegative=nonnegative, search=screening(atoms, table, candidates=100, scans=3))
    assert sum(int(claimed.sum()) for claimed, _ in checked) > 30 or twins
    assert all((off[claimed] <= 1e-9).all() for claimed, off in checked)
    # The test would notice a lie: some choices that were not claimed are not the best.
    assert any((off[~claimed] > 1e-6).any() for claimed, off in checked)


@pytest.mark.parametrize("table", [True, False])
def test_the_loss_is_within_a_hundredth_of_the_exact_one(table):
    x, atoms = problem(n=200, n_latents=2000, d=256, k=12, dtype=torch.float32)
    losses = []
    for search in ("dense", screening(atoms, table)):
        code = gradient_pursuit(x, atoms, 16, search=search)
        losses.append((x - code.decode(atoms)).square().sum().item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_the_report_counts_rows_choices_and_scans_over_all_calls():
    x, atoms = problem()
    search = Screening(atoms, candidates=30, scans=4)
    for part in x.split(15):
        orthogonal_matching_pursuit(part, atoms, 8, nonnegative=False, search=search)
    report = search.report()
    assert (report.rows, report.choices, report.scanned) == (40, 40 * 8, 40 * 4)
    assert 0 < report.proven <= report.choices
    assert report.proven_share == report.proven / 320
    assert (report.candidates, report.scans) == (30, 4)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS)
def test_zero_rows_and_exact_rows_end_early_and_are_scanned_before_they_do(coder, table):
    _, atoms = problem()
    x = torch.cat([torch.zeros(1, 48, dtype=torch.float64), 3 * atoms[17:18], 2 * atoms[99:100]])
    search = screening(atoms, table)
    code = coder(x, atoms, 6, search=search)
    assert code.l0().tolist() == [0, 1, 1]
    torch.testing.assert_close(code.decode(atoms), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_no_atom_is_chosen_twice_when_all_are_taken(nonnegative, table):
    x, atoms = problem(n_latents=21, d=40, k=5)
    code = gradient_pursuit(x, atoms, 21, nonnegative=nonnegative, search=screening(atoms, table, candidates=2))
    for row in code.support():
        named = row[row >= 0]
        assert len(named.unique()) == len(named)
    assert code.values.isfinite().all()


def test_other_atoms_and_empty_lists_are_refused():
    x, atoms = problem()
    with pytest.raises(ValueError, match="make a new Screening"):
        gradient_pursuit(x, atoms.roll(1, dims=0), 4, search=Screening(atoms))
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        Screening(atoms, candidates=0)
    with pytest.raises(ValueError, match="make a new GramTable"):
        Screening(atoms.roll(1, dims=0), table=GramTable(atoms))


def test_activations_are_never_screened_without_being_asked():
    x, atoms = problem(n=4000, n_latents=1100, d=512)
    automatic = gradient_pursuit(x[:64], atoms, 4)
    dense = gradient_pursuit(x[:64], atoms, 4, search="dense")
    assert torch.equal(automatic.indices, dense.indices)
