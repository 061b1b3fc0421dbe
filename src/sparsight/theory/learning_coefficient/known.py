"""Learning coefficients that are known exactly: normal crossings, reduced-rank regression, deep linear networks."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Coefficient(NamedTuple):
    """The two numbers of `F_n = n L(w*) + value log n - (multiplicity - 1) log log n + O(1)`.

    Attributes:
        value: The learning coefficient; half the number of parameters where a model is regular, less where it is not.
        multiplicity: 1 or more; above 1 what is measured at a finite `n` lies below `value` by about
            `(multiplicity - 1) / log n`.
    """

    value: float
    multiplicity: int


def normal_crossing(exponents: Sequence[int]) -> Coefficient:
    """Of `K = prod_i w_i^(2 k_i)` at 0: the least `1 / (2 k_i)`, with the number of coordinates that attain it.

    Args:
        exponents: The `k_i`; a coordinate that `K` does not depend on has 0.
    Raises:
        ValueError: an exponent is negative, or none is positive.
    Source:
        Watanabe, "Algebraic Geometry and Statistical Learning Theory", 2009.
    """
    if any(k < 0 for k in exponents) or not any(exponents):
        raise ValueError(f"exponents must be 0 or more with one above 0, got {list(exponents)}")
    largest = max(exponents)
    return Coefficient(1 / (2 * largest), sum(k == largest for k in exponents))


def reduced_rank(inputs: int, outputs: int, hidden: int, rank: int) -> Coefficient:
    """Of a linear network with one hidden layer, `y = B A x`, where the truth is a matrix of the given rank.

    The least over all parameters that give the truth; it is found where the `hidden - rank` units that are not needed
    are zero on both sides.

    Args:
        inputs, outputs, hidden: Widths `M`, `N`, `H`.
        rank: Of the true matrix, at most the least width.
    Raises:
        ValueError: a width is below 1, or the rank is impossible.
    Source:
        Aoyagi & Watanabe, "Stochastic complexities of reduced rank regression in Bayesian estimation",
        Neural Networks 18(7), 2005.
    """
    _check_widths((inputs, hidden, outputs), rank)
    m, n, h, r = inputs, outputs, hidden, rank
    if m + h < n + r:
        return Coefficient((h * m - h * r + n * r) / 2, 1)
    if n + h < m + r:
        return Coefficient((h * n - h * r + m * r) / 2, 1)
    if m + n < h + r:
        return Coefficient(m * n / 2, 1)
    odd = (m + n + h + r) % 2
    return Coefficient((2 * (h + r) * (m + n) + 2 * m * n - (h + r) ** 2 - m**2 - n**2 + odd) / 8, 1 + odd)


def deep_linear(widths: Sequence[int], rank: int) -> Coefficient:
    """Of a linear network of any depth, where the truth is a matrix of the given rank.

    With `m_s = width_s - rank`, the answer depends on a bottleneck: the widths with the least `m_s`, as many as satisfy
    `max inside < min outside`, `sum inside >= l max inside` and `sum inside < l min outside`, `l` being their number
    less one. Candidates are tried from the narrowest two up.

    Args:
        widths: Inputs, hidden layers in order, outputs.
        rank: Of the true matrix, at most the least width.
    Raises:
        ValueError: there are fewer than two widths, one is below 1, or the rank is impossible.
    Source:
        Aoyagi, "Consideration on the learning efficiency of multiple-layered neural networks with linear units",
        Neural Networks 172, 2024.
    """
    _check_widths(widths, rank)
    spare = sorted(width - rank for width in widths)
    for size in range(2, len(spare) + 1):
        inside, rest = spare[:size], spare[size:]
        length, total = size - 1, sum(inside)
        next_up = rest[0] if rest else math.inf
        if inside[-1] < next_up and total >= length * inside[-1] and total < length * next_up:
            break
    else:
        raise AssertionError(f"no bottleneck among the widths {list(widths)} at rank {rank}")
    over = total - (math.ceil(total / length) - 1) * length
    pairs = (total**2 - sum(m * m for m in inside)) / 2
    shared = rank * (widths[0] + widths[-1]) - rank**2
    value = shared / 2 + over * (length - over) / (4 * length) - (length - 1) * total**2 / (4 * length) + pairs / 2
    return Coefficient(value, over * (length - over) + 1)


def _check_widths(widths: Sequence[int], rank: int) -> None:
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be two or more, each 1 or more, got {list(widths)}")
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank must be between 0 and the least width {min(widths)}, got {rank}")
