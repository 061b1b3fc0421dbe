"""Gated's loss with one thing changed at a time, trained to one L0 on one stream, and what comes of it."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sparsight.codes import SparseCode
from sparsight.dictionaries import AbstractDictionary, Gated, GatedDictionary, ReLU, ReLUDictionary
from sparsight.dictionaries.base import DictionaryConfig
from sparsight.evaluation import recovery, shrinkage
from sparsight.evaluation.reading import part_of
from sparsight.studies.gated_loss_rescaled import fit_rescaling
from sparsight.studies.planted import Planted, random_atoms
from sparsight.studies.subject import Subject
from sparsight.studies.work import Work
from sparsight.training import Training, train

PUBLISHED, RELU, RESCALED, SHIFTED = "published", "ReLU", "ReLU, rescaled", "ReLU, rescaled and shifted"
WITHOUT, UNFROZEN = "no third term", "decoder trained too"
WITHOUT_REVIVED, INPUT_HELD = "no third term, revival", "input offset held"
UNTIED, NO_SCALE, ONE_OFFSET, NEITHER = "untied", "no r_mag", "one offset", "no r_mag, one offset"
NO_STEP = "no step function"
WEIGHTS = (0.1, 0.3, 3.0, 10.0)
FIXED_L1 = 0.1


def weight_name(weight: float) -> str:
    """The variant whose third term has this weight in place of 1."""
    return f"third term times {weight:g}"


# What each variant changes of the published loss.
VARIANTS: dict[str, dict[str, Any]] = {
    PUBLISHED: {},
    WITHOUT: {"gate_aux": 0.0},
    WITHOUT_REVIVED: {"gate_aux": 0.0, "aux": 1 / 32},
    UNFROZEN: {"freeze_aux_decoder": False},
    INPUT_HELD: {"detach_aux_input": True},
    UNTIED: {"untied": True},
    NO_SCALE: {"fixed_r_mag": True},
    ONE_OFFSET: {"shared_bias": True},
    NEITHER: {"fixed_r_mag": True, "shared_bias": True},
    NO_STEP: {"heaviside": False},
    **{weight_name(weight): {"gate_aux": weight} for weight in WEIGHTS},
}
# Times the target: the L0s at which the published loss and ReLU are trained as well, the frontiers to compare along.
SPREADS = {PUBLISHED: (0.25, 0.5, 1.0, 2.0), RELU: (0.5, 1.0, 2.0)}


@dataclass(frozen=True)
class Setting:
    """Sizes of one kind of data.

    Attributes:
        seeds: Independent repeats: first values, order of the batches, and planted data are drawn anew.
        n_tokens: Tokens of training.
        target: Mean number of active latents asked for.
        lr: Peak learning rate.
        n_measured: Rows on which all is measured, not trained on.
    """

    seeds: int
    n_tokens: int
    target: float
    lr: float
    n_measured: int
    batch_size: int = 512


@dataclass(frozen=True)
class Data:
    """Rows to measure on, and some to fit a rescaling on.

    Attributes:
        x: Not trained on.
        groups: What is independent among them: the document of each row.
        fitted_on: Training rows.
        truth: Behind planted rows.
    """

    x: Float[Tensor, "n d"]
    groups: Int64[Tensor, " n"]
    fitted_on: Float[Tensor, "m d"]
    truth: Planted | None = None


def configurations(n_latents: int, target: float, dead_after: int) -> dict[str, DictionaryConfig]:
    """All that is trained on one stream. Without revival, so that the loss is the paper's three terms."""

    def gated(target_l0: float, **changes: Any) -> Gated:
        return Gated(n_latents, target_l0=target_l0, **{"aux": 0.0, "dead_after": dead_after, **changes})

    made: dict[str, DictionaryConfig] = {name: gated(target, **changes) for name, changes in VARIANTS.items()}
    for factor in SPREADS[PUBLISHED]:
        if factor != 1:
            made[_at(PUBLISHED, factor)] = gated(factor * target)
    for factor in SPREADS[RELU]:
        made[_at(RELU, factor)] = ReLU(n_latents, target_l0=factor * target, aux=0.0, dead_after=dead_after)
    for name in (PUBLISHED, WITHOUT):
        changes = {"l1": FIXED_L1, "aux": 0.0, "dead_after": dead_after, **VARIANTS[name]}
        made[fixed_name(name)] = Gated(n_latents, **changes)
    return made


def frontier_names(name: str) -> list[str]:
    """The arms of the published loss, of ReLU or of a repaired ReLU at all their sparsities."""
    return [_at(name, factor) for factor in SPREADS[PUBLISHED if name == PUBLISHED else RELU]]


def fixed_name(name: str) -> str:
    """The arm of a variant at a fixed weight of the penalty."""
    return f"{name}, l1 = {FIXED_L1:g}"


def planted_runs(work: Work, setting: Setting, s: int, *, d: int, true: int, n_latents: int, k: int) -> dict[str, Any]:
    """Every variant on planted rows: `true` random atoms in `d` dimensions, `k` active, weights `0.25 + Exp(1)`."""
    seed = 1000 * work.options.seed + s
    n = 20_000
    planted = random_atoms(500_000 + seed, d, true, k, 0.05, n + setting.n_measured, least=0.25)
    x = planted.x.float()
    truth = Planted(planted.x[n:], planted.atoms, _rows(planted.code, n))
    data = Data(x[n:], torch.arange(setting.n_measured), x[:n], truth)
    return _runs(work, x[:n], data, setting, n_latents, f"planted-{s}", seed)


def model_runs(work: Work, on: Subject, setting: Setting, s: int, n_latents: int) -> dict[str, Any]:
    """Every variant on the activations of a model."""
    heldout, training = part_of(on.store, "heldout"), part_of(on.store, "train")
    # Whole documents from the front, so that a document's tokens stay together.
    rows = slice(0, min(setting.n_measured, len(heldout)))
    data = Data(
        heldout.rows(on.site, rows).float(),
        heldout.tokens(rows).document_ids,
        training.rows(on.site, slice(0, min(20_000, len(training)))).float(),
    )
    seed = 1000 * work.options.seed + s
    return _runs(work, on.store, data, setting, n_latents, f"model-{s}", seed)


def _runs(
    work: Work, source: Any, data: Data, setting: Setting, n_latents: int, folder: str, seed: int
) -> dict[str, Any]:
    configs = configurations(n_latents, setting.target, dead_after=max(5_000, setting.n_tokens // 10))
    training = Training(n_tokens=setting.n_tokens, batch_size=setting.batch_size, lr=setting.lr, seed=seed,
                        checkpoint_every=10**9)  # fmt: skip
    runs = train(
        source,
        list(configs.values()),
        training,
        out=work.scratch(folder),
        resume=True,
        device=work.options.device,
        progress=work.progress,
    )
    trained = {name: run.dictionary.cpu() for name, run in zip(configs, runs, strict=True)}
    return measured(trained, data)


@torch.no_grad()
def measured(trained: dict[str, AbstractDictionary], data: Data) -> dict[str, Any]:
    """Sparsity, error by document, bias and gate of each dictionary, and of each ReLU one rescaled and shifted.

    Returns:
        `energy`: variance by document; `arms`: name, then the measurements.
    """
    mean = data.x.double().mean(dim=0)
    arms: dict[str, Any] = {}
    for name, dictionary in trained.items():
        arms[name] = _arm(dictionary, dictionary.encode_dense(data.x), data, mean)
        if isinstance(dictionary, ReLUDictionary):
            for arm, shift in ((RESCALED, False), (SHIFTED, True)):
                rescaling = fit_rescaling(dictionary, data.fitted_on, shift=shift)
                code = rescaling.of(dictionary.encode_dense(data.x))
                arms[name.replace(RELU, arm, 1)] = _arm(dictionary, code, data, mean)
    return {"energy": _by_group((data.x.double() - mean).square().sum(dim=1), data.groups), "arms": arms}


def _arm(dictionary: AbstractDictionary, code: Tensor, data: Data, mean: Tensor) -> dict[str, Any]:
    x_hat = code @ dictionary.atoms + dictionary.b_dec
    errors = (data.x.double() - x_hat.double()).square().sum(dim=1)
    active = code > 0
    found: dict[str, Any] = {
        "l0": float(active.sum(dim=1).double().mean()),
        "error": _by_group(errors, data.groups),
        "silent": float((~active.any(dim=0)).double().mean()),
        "gate": float(_encoder(dictionary).norm(dim=0).mean()),
        # A code of nothing but zeros reconstructs a constant, of which no bias can be told.
        "r": float(shrinkage(data.x, x_hat, centre=mean).r) if bool(active.any()) else None,
    }
    if data.truth is not None:
        k = max(1, int(active.sum(dim=1).max()))
        back = recovery(dictionary.atoms, data.truth.atoms, SparseCode.from_dense(code, k), data.truth.code)
        assert back.codes is not None
        found |= {"recovered": back.fraction_recovered, "f1": back.codes.f1}
    return found


def _encoder(dictionary: AbstractDictionary) -> Tensor:
    assert isinstance(dictionary, GatedDictionary | ReLUDictionary)
    return dictionary.W_enc


def _by_group(terms: Tensor, groups: Tensor) -> list[float]:
    """Sums within each document; of planted rows, each its own, one sum for all."""
    ids, where = torch.unique(groups, return_inverse=True)
    if len(ids) == len(groups):
        return [float(terms.sum())]
    return [float(v) for v in torch.zeros(len(ids), dtype=torch.float64).index_add_(0, where, terms)]


def _rows(code: SparseCode, start: int) -> SparseCode:
    return SparseCode(code.indices[start:], code.values[start:], code.n_latents)


def _at(name: str, factor: float) -> str:
    return name if factor == 1 else f"{name}, {factor:g} times the L0"
