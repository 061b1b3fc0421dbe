"""An estimate of the local learning coefficient with everything that says whether to believe it."""

from typing import Annotated, Literal

from pydantic import Field

from sparsight.evaluation.record import Record

Finite = Annotated[float, Field(allow_inf_nan=False)]

MOST_BELOW = 0.05  # share of draws below L(w*)
MOST_HEADROOM = 0.05  # of the estimate, that descent from w* gains
MOST_NOISE = 0.05
MOST_DISCRETISATION = 0.1
MOST_R_HAT = 1.05
MOST_GROWTH = 0.05
CLEAR_GROWTH = 3.0  # standard errors
LEAST_ESS = 100
LEAST_ACCEPTANCE = 0.3


class LearningCoefficient(Record):
    """`n_beta (mean of L(w) - L(w*))` over draws from the posterior near `w*`, and its diagnostics.

    Attributes:
        value: Mean over chains; dimensionless, in units of which a regular model has one half for each parameter.
        standard_error: Of `value`, from the effective sample size.
        by_chain: The estimate of each chain.
        n_beta: Samples times inverse temperature: the estimate belongs to it.
        gamma: Precision of the localisation; directions with `n_beta h` below it do not count.
        n_parameters: Coordinates that varied.
        sampler, step, n_chains, n_draws, n_burn_in, steps_per_draw: How it was sampled.
        seed: That the generator was started with.
        loss_star: `L(w*)` on all data.
        gradient_norm: Of `L` at `w*`, in the coordinates that varied.
        headroom: `n_beta` times what fifty steps of gradient descent from `w*` gain: 0 at a minimum.
        ess: Effective number of draws of the loss.
        r_hat: Split R-hat of the loss; None where it has no finite value, chains standing still at different losses.
        below: Share of draws with `L(w) < L(w*)`.
        noise_ratio: `step n_beta^2 v / 4`, `v` the variance of the minibatch gradient: by this share minibatches add to
            the noise.
        discretisation_ratio: `step (n_beta h + gamma) / 4`, `h` the largest eigenvalue of the Hessian, at `w*` or where
            the chains ended, whichever is larger: by about this share the variance in that direction is too large.
        acceptance: Share of proposals accepted; None for "sgld".
        distance: Root mean square of `|w - w*|`.
        growth: By what share of its mean `|w - w*|^2` is larger in the second half of the draws than in the first.
        growth_z: The same in standard errors, chains being the observations.
        trace: `L(w) - L(w*)` of each chain's draws.
    """

    value: Finite
    standard_error: Finite
    by_chain: list[Finite]
    n_beta: Finite
    gamma: Finite
    n_parameters: int
    sampler: Literal["sgld", "mala"]
    step: Finite
    n_chains: int
    n_draws: int
    n_burn_in: int
    steps_per_draw: int
    seed: int
    loss_star: Finite
    gradient_norm: Finite
    headroom: Finite
    ess: Finite
    r_hat: Finite | None
    below: Finite
    noise_ratio: Finite
    discretisation_ratio: Finite
    acceptance: Finite | None
    distance: Finite
    growth: Finite
    growth_z: Finite
    trace: list[list[Finite]] = Field(repr=False)

    @property
    def sd(self) -> float:
        """Standard deviation over chains."""
        mean = sum(self.by_chain) / len(self.by_chain)
        return float((sum((v - mean) ** 2 for v in self.by_chain) / (len(self.by_chain) - 1)) ** 0.5)

    @property
    def problems(self) -> list[str]:
        """Why the value is not to be believed; empty where no diagnostic speaks against it."""
        found = []
        if self.value < 0:
            found.append(f"it is negative ({self.value:.3g}): a sign that w* is no minimum, not a value")
        if self.below > MOST_BELOW:
            found.append(f"{self.below:.0%} of the draws lie below L(w*): w* is no minimum; optimise further")
        if self.headroom > MOST_HEADROOM * abs(self.value):
            found.append(
                f"descent from w* gains {self.headroom:.2g} of it (gradient norm {self.gradient_norm:.2g}): "
                "w* is no minimum; optimise further"
            )
        if self.discretisation_ratio > MOST_DISCRETISATION and self.sampler == "sgld":
            found.append(
                f"the step is too large (discretisation ratio {self.discretisation_ratio:.2g}, "
                f"at most {MOST_DISCRETISATION}); lower step"
            )
        if self.noise_ratio > MOST_NOISE:
            found.append(
                f"minibatches add too much noise (ratio {self.noise_ratio:.2g}, at most {MOST_NOISE}); "
                "lower step or take larger batches"
            )
        if self.r_hat is None or self.r_hat > MOST_R_HAT:
            shown = "infinite" if self.r_hat is None else f"{self.r_hat:.3f}"
            found.append(f"the chains do not agree (split R-hat {shown}, at most {MOST_R_HAT}); run them longer")
        if self.growth > MOST_GROWTH and self.growth_z > CLEAR_GROWTH:
            found.append(
                f"the chains still spread: |w - w*|^2 grew by {self.growth:.0%} during the draws; run them longer"
            )
        if self.ess < LEAST_ESS:
            found.append(f"the draws are worth {self.ess:.0f} independent ones, fewer than {LEAST_ESS}; draw more")
        if self.acceptance is not None and self.acceptance < LEAST_ACCEPTANCE:
            found.append(f"{self.acceptance:.0%} of the proposals were accepted; lower step")
        return found

    @property
    def valid(self) -> bool:
        """Whether no diagnostic speaks against the value."""
        return not self.problems

    @property
    def verdict(self) -> str:
        """ "valid", or "not valid because ..." with what to do."""
        return "valid" if self.valid else f"not valid because {'; '.join(self.problems)}"

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def __str__(self) -> str:
        return (
            f"{self.value:.4g} +- {self.standard_error:.2g} at n_beta {self.n_beta:.4g}, gamma {self.gamma:.3g} "
            f"({self.n_parameters} parameters, {self.sampler}, step {self.step:.2g}): {self.verdict}"
        )
