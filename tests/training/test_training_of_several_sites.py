"""Training on several sites: resuming, evaluation, and sources that do not fit together."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsight.activations import ActivationStore, ActivationStream, harvest
from sparsight.dictionaries import Crosscoder, TopK, Transcoder
from sparsight.errors import DataError, TrainingError
from sparsight.evaluation import evaluate
from sparsight.evaluation.splice import FromSite, replaced_losses
from sparsight.formats import load_dictionary
from sparsight.models import Site, load_model, organism
from sparsight.training import Training, train
from sparsight.training.joined import JoinedStream
from sparsight.training.member import Member

CONFIGS = [Transcoder(24, 3, skip=True, dead_after=64), Crosscoder(24, 3, dead_after=64), Crosscoder(24, l1=0.05)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.run_name)
SETTINGS = Training(n_tokens=40 * 32, batch_size=32, lr=0.01, log_every=4, checkpoint_every=7, normalization_tokens=64)


def unit(n: int, d: int, g: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)


def sparse(n: int, m: int, g: torch.Generator) -> Tensor:
    """Three of `m` latents in each row, with weights in [0.5, 1.5]."""
    support = torch.rand(n, m, generator=g).topk(3, dim=1).indices
    return torch.zeros(n, m).scatter(1, support, torch.rand(n, 3, generator=g) + 0.5)


def data() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(250, 8, generator=g) + 2, 30 * torch.randn(250, 5, generator=g)]


@every_config
def test_an_interrupted_run_of_several_sites_resumes_to_the_same_bits(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [whole] = train(data(), [config], SETTINGS, out=tmp_path / "whole")
    read, count = JoinedStream.__next__, 0

    def reads(stream: JoinedStream) -> Tensor:
        nonlocal count
        count += 1
        if count == 2 + 11:  # two batches for the normalisation
            signal.raise_signal(signal.SIGINT)
        return read(stream)

    with monkeypatch.context() as patch:
        patch.setattr(JoinedStream, "__next__", reads)
        with pytest.raises(KeyboardInterrupt):
            train(data(), [config], SETTINGS, out=tmp_path / "parts")
    [resumed] = train(data(), [config], SETTINGS, out=tmp_path / "parts", resume=True)
    one, other = (load_file(run.folder / "dictionary.safetensors") for run in (whole, resumed))
    assert {n: t.tolist() for n, t in one.items()} == {n: t.tolist() for n, t in other.items()}
    with pytest.raises(TrainingError, match="data"):
        train([t[:100] for t in data()], [config], SETTINGS, out=tmp_path / "parts", resume=True)


@every_config
def test_ten_times_the_rate_gives_no_nan_and_atoms_keep_their_norm(config: Any) -> None:
    trained = Member("run", config, (8, 5), Training(n_tokens=10_000), torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(512, 8, generator=g) / 8**0.5, torch.randn(512, 5, generator=g) / 5**0.5], dim=1)
    for step in range(200):
        trained.step(x[64 * (step % 8) :][:64], 1e-2, 1.0)
    assert all(bool(torch.isfinite(p).all()) for p in trained.dictionary.parameters())
    torch.testing.assert_close(trained.dictionary.atoms.norm(dim=1).detach(), torch.ones(24), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "config", [CONFIGS[0], pytest.param(CONFIGS[1], marks=pytest.mark.slow)], ids=lambda c: c.run_name
)
@pytest.mark.parametrize(("aux", "revived"), [(1 / 32, 12), (0.0, 0)])
def test_latents_out_of_reach_come_back_through_the_auxiliary_loss_and_only_through_it(
    config: Any, aux: float, revived: int
) -> None:
    config = replace(config, aux=aux, dead_after=200)
    trained = Member("run", config, (8, 5), Training(n_tokens=10_000), torch.device("cpu"))
    g = torch.Generator().manual_seed(0)
    z = sparse(1024, 30, g)
    x = torch.cat([z @ unit(30, 8, g), z @ unit(30, 5, g)], dim=1)
    x = x - x.mean(dim=0)
    with torch.no_grad():
        trained.dictionary.b_enc[:12] = -3.0
    fired = torch.zeros(12, dtype=torch.bool)
    for step in range(400):  # a quarter of the dead learns in each token; over four seeds the last came back before 400
        fired |= trained.step(x[128 * (step % 8) :][:128], 0.01, 1.0).fired[:12]
    assert int(fired.sum()) >= revived if aux else int(fired.sum()) == 0


def test_units_of_the_sites_change_no_measurement(tmp_path: Path) -> None:
    x, y = data()
    for config in CONFIGS[:2]:
        plain, scaled = (
            train(sites, [config], SETTINGS, out=tmp_path / config.run_name / name)[0]
            for name, sites in (("plain", [x, y]), ("scaled", [1000 * x + 5, y / 50]))
        )
        for a, b in zip(plain.metrics, scaled.metrics, strict=True):
            assert a["fvu"] == pytest.approx(b["fvu"], rel=0.02)


@pytest.mark.parametrize(
    ("source", "configs", "site", "said"),
    [
        ([0, 1], [TopK(8, 2)], None, "topk-8-k2 reads 1 site.*gives 2"),
        ([0], [Transcoder(8, 2)], None, "transcoder-8-k2 reads 2 site.*gives 1"),
        ([0, 1], [Crosscoder(8, 2), TopK(8, 2)], None, "topk-8-k2 reads 1"),
        ([0, 1, 0], [Transcoder(8, 2)], None, "transcoder-8-k2 reads 2 site.*gives 3"),
        ([0, 1], [Crosscoder(8, 2)], ["embed"] * 3, "one site for each of 2 tensors"),
        ([], [Crosscoder(8, 2)], None, "empty sequence"),
    ],
)
def test_a_source_of_another_number_of_sites_is_refused(
    source: list[int], configs: list[Any], site: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        train([data()[i] for i in source], configs, SETTINGS, out=tmp_path / "out", site=site)
    assert not (tmp_path / "out").exists()


def test_tensors_must_have_equally_many_finite_rows(tmp_path: Path) -> None:
    x, y = data()
    with pytest.raises(ValueError, match=r"as many in each, got \[250, 249\]"):
        train([x, y[1:]], [Crosscoder(8, 2)], SETTINGS, out=tmp_path)
    y[7, 0] = torch.nan
    with pytest.raises(TrainingError, match="row 7 of tensor 2"):
        train([x, y], [Crosscoder(8, 2)], SETTINGS, out=tmp_path)
    with pytest.raises(TrainingError, match="of input 2 are all equal"):
        train([x, torch.ones(250, 3)], [Crosscoder(8, 2)], SETTINGS, out=tmp_path / "flat")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[ActivationStore]:
    """Both models on the same texts, and the first on other texts."""
    folder = tmp_path_factory.mktemp("stores")
    sites = ["0.mlp_in", "0.mlp_out", "1.resid_post"]
    made = []
    for i, (name, seed) in enumerate([("organism", 0), ("organism-backdoored", 0), ("organism", 1)]):
        lm = load_model(name, device="cpu")
        documents = list(organism.corpus(seed, 150))
        made.append(harvest(lm, documents, sites, folder / str(i), n_tokens=1500, heldout=0.3))
    return made


def test_a_transcoder_of_a_store_is_located_evaluated_and_spliced_in(
    stores: list[ActivationStore], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, n_tokens=20_000, batch_size=256)
    run = train(stores[0], [Transcoder(64, 8)], settings, out=tmp_path, site=("0.mlp_in", "0.mlp_out"))[0]
    dictionary = load_dictionary(run.folder)
    assert dictionary.site == Site(0, "mlp_in")
    assert [str(place) for place in dictionary.places] == ["0.mlp_in of organism", "0.mlp_out of organism"]
    found = evaluate(dictionary, stores[0], model=load_model("organism", device="cpu"), n_resamples=10)
    part = stores[0].split("heldout")
    x, y = (part.rows(site, slice(0, len(part))) for site in ("0.mlp_in", "0.mlp_out"))
    fvu = float((y - dictionary(x)).square().sum() / (y - y.mean(dim=0)).square().sum())
    assert found.fvu.value == pytest.approx(fvu, rel=1e-4)
    assert found.site == "0.mlp_out"
    assert found.loss is not None
    assert found.loss.kl.value > 0
    with pytest.raises(ValueError, match="a transcoder codes what it reads"):
        evaluate(dictionary, stores[0], coder="gradient_pursuit", k=4)
    with pytest.raises(ValueError, match="measured on one store, got 2"):
        evaluate(dictionary, stores[:2])


def test_what_a_replacement_reads_elsewhere_stands_in_the_modules_place(stores: list[ActivationStore]) -> None:
    """With the module's own output it changes nothing; with zeros it is zero ablation."""
    lm = load_model("organism", device="cpu")
    tokens = next(iter(stores[0].context_batches(4))).tokens
    read, written = Site(0, "mlp_in"), Site(0, "mlp_out")
    with torch.no_grad():
        clean = lm.activations(tokens, [read, written])
    true_input, true_output = clean[read][tokens.counted], clean[written][tokens.counted]

    def module(x: Tensor) -> Tensor:
        assert torch.equal(x, true_input)
        return true_output

    found = replaced_losses(
        lm,
        tokens,
        written,
        {
            "module": FromSite(read, module),
            "nothing": FromSite(read, lambda x: torch.zeros_like(true_output)),
            "zero": torch.zeros_like,
        },
    )
    assert float(found["module"][:, 1].abs().max()) < 1e-9
    assert torch.equal(found["nothing"], found["zero"])
    assert float(found["zero"][:, 1].max()) > 1e-3
    with pytest.raises(ValueError, match=r"0\.mlp_in is computed before 0\.mlp_out"):
        replaced_losses(lm, tokens, read, {"module": FromSite(written, module)})


def test_a_crosscoder_of_two_models_is_located_and_evaluated_at_each(
    stores: list[ActivationStore], tmp_path: Path
) -> None:
    settings = replace(SETTINGS, n_tokens=20_000, batch_size=256)
    run = train(stores[:2], [Crosscoder(64, 8)], settings, out=tmp_path, site="1.resid_post")[0]
    dictionary = load_dictionary(run.folder)
    assert dictionary.site == Site(1, "resid_post")
    assert [place.model for place in dictionary.places] == ["organism", "organism-backdoored"]
    found = evaluate(dictionary, stores[:2], n_resamples=10)
    parts = [store.split("heldout") for store in stores[:2]]
    sites = [part.rows("1.resid_post", slice(0, len(part))) for part in parts]
    x_hat = dictionary(torch.cat(sites, dim=1))
    for record, x, hat in zip(found.by_site, sites, x_hat.split(x_hat.shape[1] // 2, dim=1), strict=True):
        fvu = float((x - hat).square().sum() / (x - x.mean(dim=0)).square().sum())
        assert record.fvu.value == pytest.approx(fvu, rel=1e-4)
    assert [record.model for record in found.by_site] == ["organism", "organism-backdoored"]
    assert min(r.fvu.value for r in found.by_site) <= found.fvu.value <= max(r.fvu.value for r in found.by_site)
    with pytest.raises(DataError, match="in the order of its sites"):
        evaluate(dictionary, stores[1::-1])
    with pytest.raises(DataError, match="do not hold the same rows"):
        evaluate(dictionary, [stores[2], stores[1]])


def test_stores_of_other_tokens_and_sites_that_a_store_lacks_are_refused(
    stores: list[ActivationStore], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="harvest every model on the same text"):
        train(stores[1:], [Crosscoder(8, 2)], SETTINGS, out=tmp_path, site="1.resid_post")
    with pytest.raises(ValueError, match=r"not 0\.attn_z; choose one of them or harvest it"):
        train(stores[0], [Transcoder(8, 2)], SETTINGS, out=tmp_path, site=("0.mlp_in", "0.attn_z"))
    with pytest.raises(ValueError, match="one site for each of 2 stores"):
        train(stores[:2], [Crosscoder(8, 2)], SETTINGS, out=tmp_path, site=["embed"] * 3)


def test_rows_of_two_stores_stay_together_whether_in_memory_or_on_disk(stores: list[ActivationStore]) -> None:
    parts = [store.split("train") for store in stores[:2]]
    whole = torch.cat([part.rows("1.resid_post", slice(0, len(part))) for part in parts], dim=1)
    known = {tuple(row) for row in whole.tolist()}
    for memory in (1 << 30, 0):
        joined = JoinedStream(
            [ActivationStream(part, "1.resid_post", 64, 3, memory=memory, block_rows=32) for part in parts]
        )
        for _ in range(5):
            assert {tuple(row) for row in next(joined).tolist()} <= known
    with pytest.raises(ValueError, match="one batch size, seed"):
        JoinedStream([ActivationStream(part, "1.resid_post", 64, seed) for seed, part in enumerate(parts)])
