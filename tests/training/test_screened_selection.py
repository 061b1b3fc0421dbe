"""Screened selection, of CPUs and of GPUs (in Triton's interpreter; on a GPU: test_cuda_step.py), against a sort."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsight.training.compiled.screen import Screen, ScreenedBlock
from sparsight.training.compiled.selection import collect, screened_above, screened_batch_top_k, screened_top_k

NO_INTERPRETER = find_spec("triton") is None or torch.cuda.is_available()
SCREENS = [
    pytest.param("cpu", 300, marks=pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")),
    pytest.param("triton", 96, marks=pytest.mark.skipif(NO_INTERPRETER, reason="Triton does not interpret here")),
]


def screen_of(kind: str, encoder: Tensor) -> Screen:
    if kind == "triton":
        from sparsight.training.compiled.cuda_screen import CudaScreen

        return CudaScreen(encoder)
    from sparsight.training.compiled.cpu_screen import CpuScreen

    return CpuScreen(encoder)


def rows(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    drawn: Tensor = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return drawn.mul_(scale / d**0.5)


@pytest.mark.parametrize(("kind", "m"), SCREENS)
@pytest.mark.parametrize("k", [1, 7, None])
@pytest.mark.parametrize("shift", [0.0, -2.0, 5.0])
def test_screening_never_changes_the_choice(kind: str, m: int, k: int | None, shift: float) -> None:
    """Entries that bfloat16 cannot tell apart, rows of very different sizes, offsets that silence many or none."""
    n, k, third = 6 if kind == "triton" else 60, k or m, m // 3
    g = torch.Generator().manual_seed(3)
    encoder = torch.randn(m, 48, generator=g)
    encoder[third : 2 * third] = encoder[:third] * (1 + 1e-4 * torch.randn(third, 1, generator=g))
    x = torch.randn(n, 48, generator=g) * torch.logspace(-4, 4, n)[:, None]
    x[5] = 0
    offset = 0.01 * torch.randn(m, generator=g) + shift
    true = (x.double() @ encoder.double().T + offset).relu()
    # What float32 can know of an entry.
    known = 1e-6 * (x.double().norm(dim=1, keepdim=True) * encoder.norm(dim=1).max() + 6)
    screen = screen_of(kind, encoder)
    slots = screened_top_k(screen, x, offset, k)
    values, latents = slots.values.view(n, k), slots.latents.view(n, k)
    assert bool(((values - true.sort(dim=1, descending=True).values[:, :k]).abs() < known).all())
    positive = values > 0
    assert bool(((true.gather(1, latents) - values).abs() < known)[positive].all())
    assert all(len(set(row[on].tolist())) == int(on.sum()) for row, on in zip(latents, positive, strict=True))
    batch = screened_batch_top_k(screen, x, offset, k * n)
    largest = true.flatten().sort(descending=True).values[: k * n]
    found = batch.values.double().sort(descending=True).values
    torch.testing.assert_close(found, largest[: len(found)], rtol=1e-5, atol=float(known.max()))
    assert float(largest[len(found) :].sum()) <= len(largest) * float(known.max())
    assert bool(((true[batch.tokens, batch.latents] - batch.values).abs() < known[batch.tokens, 0]).all())
    assert torch.equal(batch.tokens, batch.tokens.sort().values)


@pytest.mark.parametrize(("kind", "m"), SCREENS)
def test_the_larger_of_two_is_chosen_though_rounding_puts_it_far_below(kind: str, m: int) -> None:
    """Rounding errors of the encoder add up along the activation, against each other in the two latents."""
    half, little = 2.0**-8, 2.0**-12  # half a unit in the last place between 1 and 2, and what decides the direction
    seeming = torch.tensor([1.0 + half + little, 1.0 + half - little, 1 / 32])
    larger = torch.tensor([1.0 + half - little, 1.0 + half + little, 1 / 32 + 5 * little])
    x, encoder = torch.tensor([[1.0, -1.0, 1.0]]), torch.zeros(64, 3)
    encoder[7], encoder[50] = seeming, larger
    exact, rounded = x @ encoder.T, x @ encoder.bfloat16().float().T
    assert exact[0, 50] > exact[0, 7]
    assert rounded[0, 7] - rounded[0, 50] > 0.014
    slots = screened_top_k(screen_of(kind, encoder), x, torch.zeros(64), 1)
    assert slots.latents.tolist() == [50]


@pytest.mark.parametrize(("kind", "m"), SCREENS)
def test_latents_that_cannot_be_positive_do_not_widen_the_bound(kind: str, m: int) -> None:
    screen, x, offset = screen_of(kind, rows(m, 32, 1)), rows(8, 32, 0), torch.full((m,), 0.25)
    offset[::2] = -1000.0

    def bound(given: Tensor, **how: bool) -> float:
        (found, *_) = screen.over_blocks(x, given, lambda block: block.largest_offset - block.lift, **how)
        return found

    assert bound(offset) == 0.25
    assert bound(offset, lifted=True) == pytest.approx(0.25)
    assert bound(-offset) == 1000.0, "on the other side it is always positive"
    offset[::2] = -float(x.norm(dim=1).max() * screen.encoder.norm(dim=1).max())
    assert bound(offset) == pytest.approx(-float(offset[0])), "this one can come to 0"


def found_above(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = collect(*given, 0.25)
    assert found is not None
    return found


@pytest.mark.parametrize(("kind", "m"), SCREENS)
def test_nothing_above_a_limit_is_screened_out(kind: str, m: int) -> None:
    """At a limit far below the usual size of an entry bfloat16 puts some of them on its wrong side."""
    m = 200 if kind == "triton" else 4000
    g = torch.Generator().manual_seed(4)
    encoder = torch.nn.functional.normalize(torch.randn(m, 32, generator=g), dim=1)
    x = torch.randn(20, 32, generator=g)
    encoder[:20] = x / x.square().sum(dim=1, keepdim=True) * 0.2501  # a little above the limit, each in its row
    pre = x.double() @ encoder.double().T
    lower = torch.full((m,), 0.25)
    screen, offset = screen_of(kind, encoder), torch.zeros(m)
    found = torch.zeros(20, m, dtype=torch.bool)
    misled, off = [], []

    def look(block: ScreenedBlock) -> None:
        inside = pre[block.rows] > lower
        misled.append(bool(((block.pre <= lower) & inside).any()))
        tokens, latents, values = found_above(screen, block, x, offset, lower)
        found[tokens, latents] = True
        off.append(float((pre[tokens, latents] - values).abs().max()))

    screen.over_blocks(x, offset, look)
    assert any(misled)
    sure = (pre - lower).abs() > 1e-6
    assert torch.equal(found[sure], (pre > lower)[sure])
    assert max(off) < 1e-5


@pytest.mark.parametrize(("kind", "m"), SCREENS)
def test_what_exceeds_its_limit_is_found_or_given_up_where_a_token_has_too_much_of_it(kind: str, m: int) -> None:
    x, encoder, offset = rows(m // 5, 32, 0), rows(m, 32, 1, scale=32**0.5), rows(1, m, 2)[0]
    lower = offset + 0.01
    lower[::2] += 1.0  # half of the latents are hard to reach
    pre = x.double() @ encoder.double().T + offset
    exceeding = pre > lower
    assert float((pre - lower).abs().min()) > 1e-6
    most = int(exceeding.sum(dim=1).max())
    screen = screen_of(kind, encoder)
    found = screened_above(screen, x, offset, lower, most)
    assert found is not None
    assert torch.equal(torch.stack([found.tokens, found.latents]), exceeding.nonzero().T)
    torch.testing.assert_close(found.values.double(), pre[exceeding], rtol=1e-5, atol=1e-6)
    assert screened_above(screen, x, offset, lower, most - 1) is None


@pytest.mark.parametrize(("kind", "m"), SCREENS)
def test_a_few_rows_tell_that_far_too_much_is_active(kind: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen, x = screen_of(kind, rows(64, 32, 1)), rows(8, 32, 0)
    none, all_of_them = torch.full((64,), 9.0), torch.full((64,), -9.0)
    products: list[Tensor] = []
    over_blocks = Screen.over_blocks

    def counted(screen: Screen, centred: Tensor, *given: Any, **named: Any) -> Any:
        products.append(centred)
        return over_blocks(screen, centred, *given, **named)

    monkeypatch.setattr(Screen, "over_blocks", counted)
    assert screened_above(screen, x, torch.zeros(64), all_of_them, 31) is None
    assert not products, "64 of 64 are active, more than twice 31: the product was to be saved"
    assert screened_above(screen, x, torch.zeros(64), all_of_them, 33) is None
    assert len(products) == 1, "64 is not more than twice 33: the product decides"
    found = screened_above(screen, x, torch.zeros(64), none, 31)
    assert found is not None
    assert len(found.values) == 0


@pytest.mark.parametrize(("kind", "m"), SCREENS)
def test_no_rows_give_no_slots(kind: str, m: int) -> None:
    screen, x = screen_of(kind, rows(m, 32, 1)), rows(0, 32, 0)
    offset = torch.zeros(m)
    found = [screened_top_k(screen, x, offset, 2), screened_batch_top_k(screen, x, offset, 2)]
    above = screened_above(screen, x, offset, offset, 2)
    assert above is not None
    assert all(len(slots.tokens) == len(slots.values) == slots.n_tokens == 0 for slots in [*found, above])


@pytest.mark.skipif(NO_INTERPRETER, reason="Triton does not interpret here")
def test_of_ordinary_rows_few_entries_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsight.training.compiled import triton_kernels
    from sparsight.training.compiled.cuda_screen import CudaScreen, group_size

    again: list[int] = []
    dots = triton_kernels.dots

    def counted(*given: Tensor) -> None:
        again.append(len(given[2]))
        dots(*given)

    monkeypatch.setattr(triton_kernels, "dots", counted)
    x, encoder = rows(12, 256, 0), rows(1024, 256, 1)
    x[3] = 0  # nothing is positive there: the row is computed as a whole
    slots = screened_top_k(CudaScreen(encoder), x, torch.zeros(1024), 4)
    assert group_size(1024, 4) == 64
    assert 11 * 4 <= sum(again) <= 11 * 12, again
    assert torch.equal(slots.latents.view(12, 4)[:3], (x[:3] @ encoder.T).topk(4, dim=1).indices)
    assert float(slots.values.view(12, 4)[3].sum()) == 0


@pytest.mark.parametrize(("m", "k", "size"), [(1024, 8, 64), (1024, 9, 32), (96, 7, 4), (97, 1, 1), (40, 40, 1)])
def test_groups_divide_the_latents_and_are_twice_as_many_as_are_kept(m: int, k: int, size: int) -> None:
    pytest.importorskip("triton")
    from sparsight.training.compiled.cuda_screen import group_size

    assert group_size(m, k) == size
