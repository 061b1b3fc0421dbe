"""What holds exactly of Gated's loss: who learns from which term, its scale symmetry, and two ways to read it."""

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from sparsight.dictionaries import Gated, GatedDictionary
from sparsight.training.objectives import gated_objective

D, WIDTH, ROWS = 6, 20, 40
TERMS = ("reconstruction", "sparsity", "third term")
# Which term moves which parameter, as published for equation 8.
PUBLISHED_TABLE: dict[str, tuple[str, ...]] = {
    "W_enc": TERMS,
    "b_gate": ("sparsity", "third term"),
    "r_mag": ("reconstruction",),
    "b_mag": ("reconstruction",),
    "atoms": ("reconstruction",),
    "b_dec": TERMS,
}
SCALES = (0.01, 0.1, 10.0, 100.0)
HELD = "third term, input offset held"
# The published table, and for the form whose input offset is held too.
EXPECTED = {
    parameter: (*terms, *((HELD,) if "third term" in terms and parameter != "b_dec" else ()))
    for parameter, terms in PUBLISHED_TABLE.items()
}

Gradients = dict[str, Tensor]


def gradient_table(seed: int) -> dict[str, dict[str, float]]:
    """Norm of the gradient that each term of the shipped objective gives each parameter; exactly 0 where none.

    The loss is linear in the weights of its terms, so a term's gradient is the difference of two; where it does not
    reach a parameter the two agree to the last bit.

    Returns:
        Parameter, then term (the third one also with the input offset held), then the norm.
    """
    dictionary, x = generic(seed), rows(seed)
    plain = _objective_gradients(dictionary, x, 0.0, gate_aux=0.0)
    found = {
        "reconstruction": plain,
        "sparsity": _less(_objective_gradients(dictionary, x, 1.0, gate_aux=0.0), plain),
        "third term": _less(_objective_gradients(dictionary, x, 0.0, gate_aux=1.0), plain),
        HELD: _less(_objective_gradients(dictionary, x, 0.0, gate_aux=1.0, detach_aux_input=True), plain),
    }
    return {name: {term: float(found[term][name].norm()) for term in found} for name in PUBLISHED_TABLE}


def agrees(table: dict[str, dict[str, float]]) -> int:
    """Number of cells that are exactly 0 where "none" is published, and not 0 where a gradient is."""
    return sum((norm != 0) == (term in EXPECTED[name]) for name, cells in table.items() for term, norm in cells.items())


def smallest_push_shut(seed: int) -> float:
    """Smallest entry of the gradient that the penalty gives `b_gate`; not negative: it never opens a gate."""
    dictionary, x = generic(seed), rows(seed)
    with_it = _objective_gradients(dictionary, x, 1.0, gate_aux=0.0)
    return float(_less(with_it, _objective_gradients(dictionary, x, 0.0, gate_aux=0.0))["b_gate"].min())


def unseen_slope(seed: int, n: int = 200_000, step: float = 0.05) -> dict[str, float]:
    """Slope of the expected reconstruction term when all gates move together, which autograd says is 0.

    A central difference over many rows: the step function has no derivative, its expectation has.

    Returns:
        `slope` with its standard error `error` over rows, and `autograd`, both per unit of `b_gate`.
    """
    dictionary = generic(seed)
    x = rows(seed, n)
    autograd = _objective_gradients(dictionary, x[:ROWS], 0.0, gate_aux=0.0)["b_gate"].sum()
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            dictionary.b_gate.add_(sign * step)
            _, magnitudes, is_open = dictionary.paths(x)
            ends.append((x - (magnitudes * is_open) @ dictionary.atoms - dictionary.b_dec).square().sum(dim=1))
            dictionary.b_gate.sub_(sign * step)
    slopes = (ends[0] - ends[1]) / (2 * step)
    return {"slope": float(slopes.mean()), "error": float(slopes.std() / n**0.5), "autograd": float(autograd)}


def scale_symmetry(seed: int) -> list[dict[str, float]]:
    """What `(W_enc, b_gate) -> c (W_enc, b_gate), r_mag -> r_mag - log c` does to the code and to each term.

    Returns:
        For each `c`: largest change of the code and of the reconstruction term, relative; largest deviation of the
        penalty from `c` times itself, relative; and the third term over itself before.
    """
    x, none = rows(seed), torch.zeros(WIDTH, dtype=torch.bool)
    found = []
    for c in SCALES:
        dictionary = generic(seed)
        with torch.no_grad():
            code, before = dictionary.encode_dense(x), gated_objective(dictionary, x, none).parts
            dictionary.W_enc.mul_(c)
            dictionary.b_gate.mul_(c)
            dictionary.r_mag.sub_(math.log(c))
            moved, after = dictionary.encode_dense(x), gated_objective(dictionary, x, none).parts
        found.append(
            {
                "c": c,
                "code": float((moved - code).abs().max() / code.abs().max()),
                "reconstruction": abs(float(after["reconstruction"] / before["reconstruction"]) - 1),
                "sparsity": abs(float(after["sparsity"] / (c * before["sparsity"])) - 1),
                "third term": float(after["gate_reconstruction"] / before["gate_reconstruction"]),
            }
        )
    return found


def perspectives(seed: int) -> dict[str, dict[str, float]]:
    """Equation 8 against two sums of usual losses, parameter by parameter.

    With `q = relu(pre_gate)`, `g = 1[pre_gate > 0]` and `z` the code: P1 is `FVU(q) + l1 |q| + FVU(z)`, a ReLU
    dictionary's loss to which the magnitudes' reconstruction is added; P2 is `[FVU(z) + l1 |g|] + [FVU(q) + l1 |q|]`,
    the usual loss of both architectures. All decoders are trained in both.

    Returns:
        Parameter, then the distance of equation 8's gradient from that of P1, of P2, and of P2 with the decoder of `q`
        held, relative to equation 8's; `explained`: what is left of the distance from P2 once the decoder's gradient of
        `FVU(q)` is taken off; `masked`: change of equation 8's gradient when `q` is multiplied by `g`.
    """
    dictionary, x = generic(seed), rows(seed)
    published = _objective_gradients(dictionary, x, 1.0)
    l1 = float(dictionary.config.coefficient)
    p1 = _gradients(dictionary, _usual_losses(dictionary, x, l1))
    p2 = _gradients(dictionary, _usual_losses(dictionary, x, l1, gate_penalty=l1))
    held = _gradients(dictionary, _usual_losses(dictionary, x, l1, gate_penalty=l1, held=True))
    masked = _gradients(dictionary, _usual_losses(dictionary, x, l1, held=True, masked=True))
    decoder = _decoder_of_q(dictionary, x)
    found = {}
    for name, gradient in published.items():
        size = float(gradient.norm())
        difference = p2[name] - gradient
        found[name] = {
            "P1": float((p1[name] - gradient).norm()) / size,
            "P2": float(difference.norm()) / size,
            "P2, decoder of q held": float((held[name] - gradient).norm()) / size,
            "explained": float((difference - decoder.get(name, torch.zeros_like(gradient))).norm()) / size,
            "masked": float((masked[name] - gradient).norm()) / size,
        }
    return found


def generic(seed: int) -> GatedDictionary:
    """A dictionary in float64 with every parameter off its symmetric start."""
    g = torch.Generator().manual_seed(77_000 + seed)
    dictionary = Gated(WIDTH, 0.2, aux=0.0).build(D, torch.Generator().manual_seed(55_000 + seed)).double()
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
        dictionary.normalize_atoms_()
    return dictionary


def rows(seed: int, n: int = ROWS) -> Float64[Tensor, "n d"]:
    """Gaussian activations of unit total variance."""
    g = torch.Generator().manual_seed(33_000 + seed)
    return torch.randn(n, D, generator=g, dtype=torch.float64) / math.sqrt(D)


def _objective_gradients(dictionary: GatedDictionary, x: Tensor, sparsity: float, **changes: Any) -> Gradients:
    """Gradients of the shipped objective, with fields of the configuration changed for the moment."""
    config = dictionary.config
    dictionary.config = replace(config, **changes)
    loss = gated_objective(dictionary, x, torch.zeros(WIDTH, dtype=torch.bool), sparsity).loss
    dictionary.config = config
    return _gradients(dictionary, loss)


def _gradients(dictionary: GatedDictionary, loss: Tensor) -> Gradients:
    names, parameters = zip(*dictionary.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def _usual_losses(
    dictionary: GatedDictionary,
    x: Tensor,
    l1: float,
    *,
    gate_penalty: float = 0.0,
    held: bool = False,
    masked: bool = False,
) -> Tensor:
    """`FVU(z) + gate_penalty |g| + FVU(q) + l1 |q|`, written out."""
    gate, magnitudes, is_open = dictionary.paths(x)
    g, q = is_open.to(x.dtype), gate.relu()
    atoms, b_dec = dictionary.atoms, dictionary.b_dec
    from_code = x - (g * magnitudes) @ atoms - b_dec
    if masked:
        q = q * g
    from_gate = x - q @ (atoms.detach() if held else atoms) - (b_dec.detach() if held else b_dec)
    errors = from_code.square().sum() + from_gate.square().sum()
    return (errors + gate_penalty * g.sum() + l1 * q.sum()) / len(x)


def _decoder_of_q(dictionary: GatedDictionary, x: Tensor) -> Gradients:
    """Gradient of `FVU(q)` with respect to its decoder alone, by hand."""
    with torch.no_grad():
        q = dictionary.paths(x)[0].relu()
        error = 2 * (q @ dictionary.atoms + dictionary.b_dec - x) / len(x)
        return {"atoms": q.T @ error, "b_dec": error.sum(dim=0)}


def _less(one: Gradients, other: Gradients) -> Gradients:
    return {name: one[name] - other[name] for name in one}
