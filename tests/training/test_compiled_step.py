"""The compiled step against the plain dense one, and its screened selection against a full sort."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsight.dictionaries import BatchTopK, DictionaryConfig, Gated, JumpReLU, Matryoshka, ReLU, ReLUDictionary, TopK
from sparsight.training import Training, train
from sparsight.training.adam import AdamRule
from sparsight.training.compiled import choice
from sparsight.training.member import Member

pytest.importorskip("numba")

CPU = torch.device("cpu")


def member(config: DictionaryConfig, d: int, step: str, **settings: Any) -> Member:
    return Member("it", config, d, Training(n_tokens=1000, batch_size=8, step=step, **settings), CPU)


def rows(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    drawn: Tensor = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return drawn.mul_(scale / d**0.5)


def rule_of(it: Member) -> AdamRule:
    assert isinstance(it.rule, AdamRule)
    return it.rule


def unsettled(config: DictionaryConfig, d: int, step: str, seed: int, silenced: float = 0.0) -> Member:
    """A member whose parameters, offsets included, are no special ones; those of latents are lower by `silenced`."""
    it = member(config, d, step)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in it.dictionary.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=g), alpha=0.1 / d**0.5)
            if name in ("b_enc", "b_gate"):
                parameter.sub_(silenced)
        it.dictionary.normalize_atoms_()
    rule_of(it)._written()
    return it


def gradients(it: Member, x: Tensor, dead: Tensor) -> tuple[Any, dict[str, Tensor]]:
    rule = rule_of(it)
    rule.optimizer.clear_gradients()
    objective = rule._gradients(x, dead, 1.0)
    if rule.compiled is not None:
        return objective, rule.compiled.dense_gradients()
    return objective, {name: p.grad.clone() for name, p in it.dictionary.named_parameters() if p.grad is not None}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(
        ("topk", "batchtopk", "matryoshka", "jumprelu", "jumprelu to a target", "relu", "annealed", "gated", "no r")
    ),
    d=st.integers(1, 40),
    m=st.integers(1, 150),
    n=st.integers(1, 30),
    scale=st.sampled_from((1e-3, 1.0, 30.0)),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_gradients_are_those_of_the_dense_step(
    kind: str, d: int, m: int, n: int, scale: float, seed: int, data: st.DataObject
) -> None:
    """Of every parameter, with some latents dead, none and all; k = 1 and k = n_latents are among the cases."""
    k = data.draw(st.integers(1, m))
    k_aux = data.draw(st.sampled_from((None, 1, 3, 1000)))
    inner = tuple(sorted(data.draw(st.sets(st.integers(1, m), min_size=1, max_size=3))))
    configs: dict[str, Callable[[], DictionaryConfig]] = {
        "topk": lambda: TopK(m, k, k_aux=k_aux),
        "batchtopk": lambda: BatchTopK(m, k, k_aux=k_aux),
        "matryoshka": lambda: Matryoshka(m, k, widths=inner, k_aux=k_aux),
        "jumprelu": lambda: JumpReLU(m, l0=0.01, bandwidth=0.3 * scale, threshold=scale),
        "jumprelu to a target": lambda: JumpReLU(m, target_l0=k, bandwidth=0.3 * scale, threshold=1.5 * scale),
        "relu": lambda: ReLU(m, 0.05),
        "annealed": lambda: ReLU(m, target_l0=k, p_end=0.4),
        "gated": lambda: Gated(m, 0.05, gate_aux=(0, 1, 2.5)[seed % 3]),
        "no r": lambda: Gated(m, 0.05, fixed_r_mag=True),
    }
    config = configs[kind]()
    x = rows(n, d, seed, scale)
    silenced = 2 * scale / d**0.5 if kind in ("relu", "annealed", "gated", "no r") else 0.0
    sparse, dense = (unsettled(config, d, step, seed, silenced) for step in ("sparse", "dense"))
    flags = torch.rand(config.n_latents, generator=torch.Generator().manual_seed(seed + 1)) < (0, 0.3, 1)[seed % 3]
    ours, mine = gradients(sparse, x, flags)
    theirs, true = gradients(dense, x, flags)
    # A residual that hardly varies makes the auxiliary loss a quotient of two small numbers.
    assume(float(theirs.loss.detach()) < 100)
    torch.testing.assert_close(ours.loss, theirs.loss.detach(), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(ours.parts, theirs.parts, rtol=5e-5, atol=1e-7)
    torch.testing.assert_close(ours.l0, theirs.l0, rtol=0, atol=0, check_dtype=False)
    assert torch.equal(ours.fired, theirs.fired)
    assert mine.keys() == true.keys()
    for name, gradient in true.items():
        size = float(gradient.abs().max()) + 1e-9
        assert torch.allclose(mine[name], gradient, rtol=1e-3, atol=2e-5 * size + 1e-8), name


@pytest.mark.parametrize(
    "config",
    [ReLU(640, 0.05), ReLU(640, 0.05, p_end=0.4), Gated(640, 0.05, gate_aux=2.5), Gated(640, 0.05, fixed_r_mag=True)],
    ids=lambda config: config.run_name,
)
@pytest.mark.parametrize("n_dead", [0, 30])
def test_penalised_codes_of_few_latents_have_the_gradients_of_the_dense_step(
    config: DictionaryConfig, n_dead: int
) -> None:
    x, dead = rows(48, 24, 7), torch.arange(640) < n_dead
    sparse, dense = (unsettled(config, 24, step, 8, 0.5) for step in ("sparse", "dense"))
    if isinstance(config, ReLU) and config.p_end is not None:
        for it in (sparse, dense):
            assert isinstance(it.dictionary, ReLUDictionary)
            it.dictionary.anneal_stage.fill_(3)
    compiled: Any = rule_of(sparse).compiled
    assert len(compiled.activation.slots(x - sparse.dictionary.b_dec.detach()).values) > 100
    (ours, mine), (theirs, true) = gradients(sparse, x, dead), gradients(dense, x, dead)
    torch.testing.assert_close(ours.parts, theirs.parts, rtol=2e-5, atol=1e-7)
    assert torch.equal(ours.fired, theirs.fired)
    assert mine.keys() == true.keys()
    for name, gradient in true.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("k_aux", [None, 1, 5, 12, 1000])
def test_any_number_of_dead_latents_may_be_revived_in_a_token(k_aux: int | None) -> None:
    """Some of the twelve, all of them, and more than there are."""
    x, dead = rows(48, 24, 3), torch.arange(96) % 8 == 0
    sparse, dense = (unsettled(TopK(96, 4, aux=0.5, k_aux=k_aux), 24, step, 4) for step in ("sparse", "dense"))
    (ours, mine), (theirs, true) = gradients(sparse, x, dead), gradients(dense, x, dead)
    torch.testing.assert_close(ours.parts, theirs.parts, rtol=1e-5, atol=1e-7)
    for name, gradient in true.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "config", [TopK(96, 4), BatchTopK(96, 4), Matryoshka(96, 4, widths=(16, 40), weights=(0.5, 2.0))]
)
def test_twenty_steps_lead_where_dense_steps_lead(config: DictionaryConfig) -> None:
    sparse, dense = (member(config, 24, step) for step in ("sparse", "dense"))
    for step in range(20):
        x = rows(64, 24, step)
        ours, theirs = (it.step(x, 1e-3, 1.0) for it in (sparse, dense))
        assert float(ours.loss) == pytest.approx(float(theirs.loss.detach()), rel=1e-4)
    for (name, p), q in zip(sparse.dictionary.named_parameters(), dense.dictionary.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-3, atol=2e-4), name
    torch.testing.assert_close(sparse.dictionary.atoms.norm(dim=1), torch.ones(96))


@pytest.mark.parametrize(("threshold", "dense"), [(0.05, True), (1.5, False)])
def test_where_many_latents_are_active_the_step_is_a_dense_one(threshold: float, dense: bool) -> None:
    config = JumpReLU(64, l0=0.01, threshold=threshold, bandwidth=0.05)
    sparse, plain = (member(config, 16, step) for step in ("sparse", "dense"))
    x, dead = 2 * rows(16, 16, 2), torch.arange(64) < 9
    compiled: Any = rule_of(sparse).compiled
    assert (compiled.activation.slots(x) is None) == dense
    (one, mine), (other, true) = gradients(sparse, x, dead), gradients(plain, x, dead)
    torch.testing.assert_close(one.loss.detach(), other.loss.detach(), rtol=1e-4, atol=1e-6)
    assert mine.keys() == true.keys()
    for name, gradient in true.items():
        assert torch.allclose(mine[name], gradient, rtol=1e-3, atol=1e-6), name
    for it in (sparse, plain):
        it.step(x, 1e-3, 1.0)
    for (name, p), q in zip(sparse.dictionary.named_parameters(), plain.dictionary.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-3, atol=1e-5), name


def test_an_atom_that_stands_twice_is_taken_in_order() -> None:
    it = member(TopK(40, 3), 12, "sparse")
    with torch.no_grad():
        it.dictionary.atoms[20:] = it.dictionary.atoms[:20]
        encoder: Any = it.dictionary.W_enc
        encoder[:, 20:] = encoder[:, :20].clone()
    rule_of(it)._written()
    x = rows(50, 12, 1)
    compiled: Any = rule_of(it).compiled
    slots = compiled.activation.slots(x)
    code = it.dictionary.encode(x)
    assert torch.equal(slots.latents.view(50, 3)[slots.values.view(50, 3) > 0], code.indices[code.values > 0])


def test_threads_change_no_bit() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            it = member(Matryoshka(200, 5, widths=(50,)), 32, "sparse")
            for step in range(3):
                it.step(rows(256, 32, step), 1e-3, 1.0)
            found.append(it.tensors())
    finally:
        torch.set_num_threads(before)
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_a_run_that_is_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    x = rows(4000, 16, 5)
    training = Training(n_tokens=4000, batch_size=100, step="sparse", checkpoint_every=10, normalization_tokens=500)
    (whole,) = train(x, [TopK(64, 4, dead_after=300)], training, out=tmp_path / "whole")
    stopping = _StopAt(20)
    with pytest.raises(_Stop):
        train(x, [TopK(64, 4, dead_after=300)], training, out=tmp_path / "cut", listeners=[stopping])
    (resumed,) = train(x, [TopK(64, 4, dead_after=300)], training, out=tmp_path / "cut", resume=True)
    for (name, p), q in zip(whole.dictionary.named_parameters(), resumed.dictionary.parameters(), strict=True):
        assert torch.equal(p, q), name


class _Stop(Exception):
    pass


class _StopAt:
    """A listener that ends the process, as far as training can tell."""

    def __init__(self, step: int) -> None:
        self.step = step

    def open(self, plan: dict[str, Any]) -> None:
        pass

    def write(self, name: str, line: dict[str, Any]) -> None:
        if line["step"] >= self.step:
            raise _Stop

    def close(self) -> None:
        pass


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    from sparsight.errors import TrainingError

    it = member(TopK(30, 2), 8, "sparse")
    before = {name: p.detach().clone() for name, p in it.dictionary.named_parameters()}
    x = rows(10, 8, 0)
    x[3, 2] = float("inf")
    with pytest.raises(TrainingError, match="the loss is"):
        it.step(x, 1e-3, 1.0)
    for name, p in it.dictionary.named_parameters():
        assert torch.equal(p, before[name]), name


def test_the_step_is_chosen_by_settings_and_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {"n_tokens": 10**9}
    config = TopK(4096, 8)

    def compiled(config: DictionaryConfig, processes: int = 1, **given: Any) -> bool:
        training = Training(**{"n_tokens": 1000, **given})
        return choice.compiled_step(config.build(32), training, processes) is not None

    assert compiled(config, **large)
    assert compiled(config, step="sparse")
    assert not compiled(config)  # compiling would take longer than training
    assert not compiled(config, **large, step="dense")
    assert not compiled(config, **large, precision="bf16")
    assert not compiled(config, **large, accumulate=2)
    assert not compiled(config, **large, processes=2)
    assert compiled(Gated(4096, l1=0.1), **large)
    assert not compiled(Gated(4096, l1=0.1, untied=True), **large)
    assert compiled(ReLU(4096, l1=0.1, p_end=0.5), **large)
    assert not compiled(ReLU(4096, l1=0.1, norms="free"), **large)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert importlib.util.find_spec("numba") is not None
    assert not compiled(config, **large)


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be one of auto, dense, sparse, got 'fast'"):
        Training(n_tokens=10, step="fast")
