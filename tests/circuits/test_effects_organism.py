"""The identities of effects on the embedded model, in float64."""

import pytest
import torch
from circuit_models import KeepFloat64

from sparsight.circuits import NodeValues, Splice, latent_effects, logit_difference, nodes_of
from sparsight.dictionaries import AbstractDictionary, JumpReLU
from sparsight.models import LanguageModel, Site, load_model

SITES = (Site(1, "resid_post"), Site(2, "resid_post"))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    lm = load_model("organism", device="cpu")
    lm.model.double()
    for name, buffer in lm.model.named_buffers():
        if name.endswith("inv_freq"):
            buffer.data = buffer.float()
    return lm


@pytest.fixture(scope="module")
def dictionaries(lm: LanguageModel) -> dict[Site, AbstractDictionary]:
    """Random atoms, thresholds at the scale of the site."""
    tokens = lm.tokenize("the lazy nurse said that she")
    with KeepFloat64(), torch.no_grad():
        x = lm.activations(tokens, list(SITES))
    made: dict[Site, AbstractDictionary] = {}
    for i, site in enumerate(SITES):
        dictionary = JumpReLU(64, target_l0=8).build(128, torch.Generator().manual_seed(70 + i)).double()
        dictionary.rescale_(float(x[site][tokens.counted].norm(dim=-1).mean()))
        made[site] = dictionary
    return made


@pytest.mark.parametrize("error", ["kept", "dropped"])
def test_effects_account_for_everything(lm: LanguageModel, dictionaries: dict[Site, AbstractDictionary], error: str):
    clean, corrupted = lm.tokenize("the lazy nurse said that"), lm.tokenize("the lazy pilot said that")
    answers = lm.tokenize("she he").ids[0]
    metric = logit_difference(clean, answers[-2:-1], answers[-1:])
    settings = {"steps": 64, "rule": "gauss"} if error == "kept" else {"steps": 4, "error": "dropped"}
    with KeepFloat64():
        found = latent_effects(lm, dictionaries, clean, corrupted, metric, at=SITES[:1], batch_size=64, **settings)
    assert float(found.total.abs()) > 0.01
    assert float(found.completeness.abs()) < 1e-8
    assert found.regime == ("smooth path" if error == "kept" else "gated path")


def test_gradients_through_a_splice_are_finite_differences(
    lm: LanguageModel, dictionaries: dict[Site, AbstractDictionary]
):
    tokens = lm.tokenize("the lazy nurse said that")
    nodes = nodes_of(lm, dictionaries)

    def metric(shift: torch.Tensor) -> torch.Tensor:
        def change(v: NodeValues) -> NodeValues:
            return NodeValues(v.indices, v.values + shift * (v.values != 0), v.error)

        error = {SITES[0]: "kept", SITES[1]: "dropped"}
        splice = Splice(nodes, where=tokens.counted, error=error, change={SITES[0]: change})
        return lm.logits(tokens, edits=splice.edits())[0, -1].sin().sum()

    with KeepFloat64():
        leaf = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(metric(leaf), leaf)
        with torch.no_grad():
            h = torch.tensor(1e-6, dtype=torch.float64)
            difference = (metric(h) - metric(-h)) / (2 * h)
    torch.testing.assert_close(gradient, difference, rtol=1e-5, atol=1e-8)
    assert float(gradient.abs()) > 1e-3
