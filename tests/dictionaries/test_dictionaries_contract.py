"""What every dictionary keeps, whatever its architecture."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import nnls
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.coding import gradient_pursuit
from sparsight.dictionaries import (
    AbstractDictionary,
    BatchTopK,
    Crosscoder,
    DictionaryConfig,
    Gated,
    JointNormalization,
    JumpReLU,
    MatchingPursuit,
    MatchingPursuitDictionary,
    Matryoshka,
    Normalization,
    Pursuit,
    ReLU,
    TokenNormTopK,
    TokenNormTopKDictionary,
    TopK,
    Transcoder,
    WeightedTopK,
    WeightedTopKDictionary,
    selection,
)
from sparsight.formats import load_dictionary
from sparsight.models import Site

ARCHITECTURES = [
    TopK(40, 5),
    BatchTopK(40, 5),
    Matryoshka(40, 5, (8, 20)),
    Matryoshka(40, 5, sampled=3),
    JumpReLU(40, target_l0=5),
    Pursuit(40, 5),
    ReLU(40, 0.1),
    ReLU(40, 0.1, norms="free", p_end=0.5),
    Gated(40, 0.1),
    Transcoder(40, 5),
    Transcoder(40, 5, skip=True),
    Transcoder(40),
    Transcoder(40, jump=True, skip=True),
    Crosscoder(40, 5),
    Crosscoder(40, l1=0.1),
    WeightedTopK(40, 5),
    MatchingPursuit(40, 5),
    Transcoder(40, 5, weighted=True, skip=True),
    TokenNormTopK(40, 5),
]
every_architecture = pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: c.run_name)
D = 10


def shaken(config: DictionaryConfig) -> AbstractDictionary:
    """A dictionary whose parameters are all different from their start."""
    g = torch.Generator().manual_seed(0)
    dictionary = config.build(D, g)
    with torch.no_grad():
        for parameter in (p for p in dictionary.parameters() if p.requires_grad):
            parameter += 0.05 * torch.randn(parameter.shape, generator=g)
        weighted = isinstance(dictionary, WeightedTopKDictionary | TokenNormTopKDictionary)
        if weighted or getattr(config, "weighted", False):
            dictionary.selection += torch.rand(40, generator=g)
        if isinstance(dictionary, MatchingPursuitDictionary):
            dictionary.norm *= 0.5 + 0.5 * torch.rand(40, generator=g)
            dictionary.residual_limit += 0.1
        dictionary.normalize_atoms_()
    return dictionary.requires_grad_(False)


def normalization_of(config: DictionaryConfig, mean: Tensor, scale: float) -> Normalization | JointNormalization:
    """The same shift and scale for every architecture, in the form that it takes."""
    if isinstance(config, Transcoder):  # of its input and of its output
        return JointNormalization((Normalization(mean, scale), Normalization(mean, scale)))
    if isinstance(config, Crosscoder):  # of each half
        return JointNormalization((Normalization(mean[: D // 2], scale), Normalization(mean[D // 2 :], scale)))
    return Normalization(mean, scale)


def data(n: int = 64) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1)) / math.sqrt(D)


def passes_by(config: DictionaryConfig) -> bool:
    """Whether something of the activation reaches the reconstruction beside the code."""
    return isinstance(config, TokenNormTopK) or getattr(config, "skip", False)


@every_architecture
def test_encode_encode_dense_decode_and_forward_agree(config: DictionaryConfig) -> None:
    dictionary, x = shaken(config), data()
    code, z = dictionary.encode(x), dictionary.encode_dense(x)
    assert z.shape == (64, 40)
    assert torch.equal(code.to_dense(), z)
    assert torch.equal(SparseCode.from_dense(z).to_dense(), z)
    torch.testing.assert_close(dictionary.decode(code), z @ dictionary.atoms + dictionary.b_dec)
    assert torch.equal(dictionary(x), dictionary.reconstruct(x, code))
    if not passes_by(config):
        assert torch.equal(dictionary(x), dictionary.decode(code))


@every_architecture
def test_the_code_follows_from_the_rule_of_the_architecture(config: DictionaryConfig) -> None:
    dictionary, x = shaken(config), data()
    if isinstance(config, Pursuit):
        centred, atoms = (t.double() for t in (x - dictionary.b_dec, dictionary.atoms))
        chosen = gradient_pursuit(centred, atoms, config.k).to_dense() > 0
        expected = [nnls(atoms[on].T.numpy(), row.numpy())[0] for row, on in zip(centred, chosen, strict=True)]
        values = [dense[on] for dense, on in zip(dictionary.encode_dense(x), chosen, strict=True)]
        torch.testing.assert_close(torch.cat(values), torch.cat([torch.tensor(w) for w in expected]).float())
        return
    if isinstance(dictionary, MatchingPursuitDictionary):
        # At most k latents, the one of the largest product among them, and less left than before.
        z = dictionary.encode_dense(x)
        assert bool((z.count_nonzero(dim=1) <= config.k).all())
        first = ((x - dictionary.b_dec) @ dictionary.rows.T).max(dim=1)
        assert bool((z.gather(1, first.indices[:, None]) > 0).all())
        assert float((x - dictionary(x)).square().mean()) < float((x - dictionary.b_dec).square().mean())
        return
    parameters = dict(dictionary.named_parameters())
    if isinstance(config, TokenNormTopK):
        y = x - dictionary.b_dec
        deviation = y.std(dim=1, keepdim=True) + parameters["epsilon"]
        u = (y - y.mean(dim=1, keepdim=True)) / deviation - parameters["b_norm"]
        pre = (u @ parameters["W_enc"] + parameters["b_enc"]) * deviation
        ranked = pre * parameters["selection"]
        kth = ranked.sort(dim=1, descending=True).values[:, config.k - 1 : config.k]
        torch.testing.assert_close(dictionary.encode_dense(x), torch.where(ranked >= kth, pre, 0.0).relu())
        through = dictionary.encode_dense(x) @ dictionary.atoms + deviation * parameters["b_norm"]
        torch.testing.assert_close(dictionary(x), through + y.mean(dim=1, keepdim=True) + dictionary.b_dec)
        return
    u = (x - parameters.get("b_in", dictionary.b_dec)) @ parameters["W_enc"]
    if isinstance(config, Gated):
        magnitudes = (u * parameters["r_mag"].exp() + parameters["b_mag"]).relu()
        expected = torch.where(u + parameters["b_gate"] > 0, magnitudes, 0.0)
        torch.testing.assert_close(dictionary.encode_dense(x), expected)
        return
    pre = u + parameters["b_enc"]
    if isinstance(config, ReLU):
        norm = parameters["log_norm"].exp() if config.norms == "free" else 1.0
        expected = pre.relu() * norm
    elif isinstance(config, BatchTopK | Matryoshka):
        expected = torch.where(pre > parameters["log_theta"].exp(), pre, 0.0)
    elif isinstance(config, Transcoder) and config.jump:
        expected = torch.where(pre > parameters["log_threshold"].exp(), pre, 0.0)
    elif isinstance(config, WeightedTopK) or getattr(config, "weighted", False):
        ranked = pre * parameters["selection"]
        kth = ranked.sort(dim=1, descending=True).values[:, config.k - 1 : config.k]
        expected = torch.where(ranked >= kth, pre, 0.0).relu()
    elif isinstance(config, Crosscoder | Transcoder) and config.k is None:
        expected = pre.relu()
    elif isinstance(config, TopK | Transcoder | Crosscoder):
        kth = pre.sort(dim=1, descending=True).values[:, config.k - 1 : config.k]
        expected = torch.where(pre >= kth, pre, 0.0).relu()
    else:
        expected = torch.where(pre > parameters["log_threshold"].exp(), pre, 0.0)
    torch.testing.assert_close(dictionary.encode_dense(x), expected)


@every_architecture
def test_values_are_never_negative_and_used_slots_name_different_latents(config: DictionaryConfig) -> None:
    code = shaken(config).encode(data())
    assert code.values.min() >= 0
    for indices, values in zip(code.indices, code.values, strict=True):
        used = indices[values > 0]
        assert len(used.unique()) == len(used)


@every_architecture
def test_any_split_of_a_batch_gives_the_same_code(config: DictionaryConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary, x = shaken(config), data()
    whole = dictionary.encode_dense(x)
    for size in (1, 7, 63):
        parts = torch.cat([dictionary.encode_dense(part) for part in x.split(size)])
        torch.testing.assert_close(parts, whole)
    monkeypatch.setattr(selection, "CPU_BLOCK", 3 * 40)  # three rows in a block
    torch.testing.assert_close(dictionary.encode_dense(x), whole)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(dictionary.encode_dense(x[order]), whole[order])


@every_architecture
@pytest.mark.parametrize("x", [torch.zeros(3, D), torch.full((3, D), 1e6), torch.zeros(0, D)], ids=["0", "1e6", "none"])
def test_zero_constant_and_no_activations_give_finite_codes(config: DictionaryConfig, x: Tensor) -> None:
    for dictionary in (shaken(config), config.build(D, torch.Generator().manual_seed(0)).requires_grad_(False)):
        code = dictionary.encode(x)
        assert len(code) == len(x)
        assert bool(torch.isfinite(code.values).all())
        assert bool(torch.isfinite(dictionary(x)).all())


@every_architecture
def test_gradients_flow_through_the_code_to_the_activations(config: DictionaryConfig) -> None:
    dictionary = shaken(config).double()
    x = data(4).double().requires_grad_()
    assert torch.autograd.gradcheck(dictionary, (x,))


@every_architecture
def test_folding_gives_the_same_dictionary_in_raw_units(config: DictionaryConfig) -> None:
    mean = torch.linspace(-3, 3, D, dtype=torch.float64)
    normalization = normalization_of(config, mean, 0.02)
    dictionary = shaken(config).double()
    x = data().double()
    raw = x / 0.02 + mean
    z, x_hat = dictionary.encode_dense(x), dictionary(x)
    dictionary.fold_(normalization)
    torch.testing.assert_close(dictionary.encode_dense(raw), z / 0.02)
    torch.testing.assert_close(dictionary(raw), x_hat / 0.02 + mean)
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(40, dtype=torch.float64))
    with pytest.raises(ValueError, match="already folded"):
        dictionary.fold_(normalization)
    dictionary.unfold_()
    torch.testing.assert_close(dictionary.encode_dense(x), z)
    torch.testing.assert_close(dictionary(x), x_hat)
    with pytest.raises(ValueError, match="no normalization is folded"):
        dictionary.unfold_()


@every_architecture
def test_saving_and_loading_keeps_every_bit_and_every_record(config: DictionaryConfig, tmp_path: Path) -> None:
    dictionary = shaken(config)
    dictionary.fold_(normalization_of(config, torch.arange(D, dtype=torch.float32), 0.37))
    dictionary.site, dictionary.model = Site(2, "resid_post"), "some-model"
    dictionary.provenance = {"seed": 3, "training": {"lr": 1e-3}}
    dictionary.save(tmp_path / "d")
    generator_state = torch.random.get_rng_state()
    loaded = load_dictionary(tmp_path / "d")
    assert torch.equal(torch.random.get_rng_state(), generator_state)
    assert type(loaded) is type(dictionary)
    for name, parameter in dictionary.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter)
        assert not dict(loaded.named_parameters())[name].requires_grad
    assert loaded.config == config
    assert (loaded.site, loaded.model, loaded.provenance) == (dictionary.site, "some-model", dictionary.provenance)
    assert loaded.normalization is not None
    assert loaded.normalization.scale in (0.37, (0.37, 0.37))
    assert torch.equal(loaded.normalization.mean % D, torch.arange(len(loaded.normalization.mean)).float() % D)
    assert loaded.places == dictionary.places
    assert torch.equal(loaded(data()), dictionary(data()))
    loaded.save(tmp_path / "again")
    for name in ("dictionary.json", "dictionary.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


@every_architecture
def test_float64_dictionaries_keep_their_type_on_disk(config: DictionaryConfig, tmp_path: Path) -> None:
    dictionary = shaken(config).double()
    dictionary.normalize_atoms_()
    dictionary.save(tmp_path)
    assert load_file(tmp_path / "dictionary.safetensors")["atoms"].dtype == torch.float64
    assert torch.equal(load_dictionary(tmp_path)(data().double()), dictionary(data().double()))


@every_architecture
def test_the_same_generator_builds_the_same_dictionary(config: DictionaryConfig) -> None:
    one, other = (config.build(D, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one.atoms, other.atoms)
    torch.testing.assert_close(one.atoms.norm(dim=1), torch.ones(40))
    assert (one.n_latents, one.d_in) == (40, D)
