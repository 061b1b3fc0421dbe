"""What a search leaves behind."""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sparsight.evaluation.frozen_record import Record


class RadiusPoint(Record):
    """What perturbations of one norm do.

    Attributes:
        radius: Their norm.
        relative: The same over the mean norm of the source's activations.
        kl: Mean divergence of the next token from the model's own, nats, over a few vectors.
    """

    radius: float
    relative: float
    kl: float


class Near(Record):
    """Something a vector lies close to: an atom's latent, or a known direction by name."""

    name: str
    cosine: float


class FoundVector(Record):
    """One perturbation (a vector or an adapter) and what it makes the model do.

    Attributes:
        number: Its row in the file of vectors.
        objective: How far it moves the target.
        random: How far random ones of its size do, on average.
        kl: Divergence of the next token from the model's own, nats.
        cluster: Vectors whose completions are alike share one; clusters are numbered by size.
        same: Share of prompts that it continues as the unperturbed model does.
        completions: Of each prompt, greedily.
        atoms: Latents whose atoms it lies closest to, by the size of the cosine.
        known: Cosines with directions that were given.
        nearest: The largest cosine with another found vector.
    """

    number: int
    objective: float
    random: float
    kl: float
    cluster: int
    same: float
    completions: list[str]
    atoms: list[Near]
    known: list[Near]
    nearest: float


class Elicited(Record):
    """A finished search.

    Attributes:
        model, source, target: Of what.
        prompts: The texts.
        settings: Everything the search was told.
        radius: Norm of the vectors.
        relative: The same over the mean norm of the source's activations.
        radii: What the choice of the radius rests on; empty if it was given.
        unperturbed: The model's own completions.
        vectors: Ranked: by cluster that differs most from the model's own, then by objective.
        n_clusters: Kinds of completions.
    """

    schema_version: Literal[1] = 1
    model: str
    source: str
    target: str
    prompts: list[str]
    settings: dict[str, str | int | float | bool | None]
    radius: float = Field(gt=0)
    relative: float
    radii: list[RadiusPoint]
    unperturbed: list[str]
    vectors: list[FoundVector]
    n_clusters: int

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """The vectors for a terminal: the first of each cluster, then the rest by number."""
        from sparsight.evaluation.tables import rendered, titled

        rank = self.settings.get("adapter_rank")
        kind = f"adapters of rank {rank}" if rank else "vectors"
        title = (
            f"{self.model}: {len(self.vectors)} {kind} at {self.source} of norm {self.radius:.4g} "
            f"({self.relative:.2f} of the mean) that move {self.target}; {self.n_clusters} kinds of completions"
        )
        table = titled(
            title, "vector", "kind", "moves", "random", "KL", "unchanged", "nearest atom", "known", "goes on"
        )
        for v in self.vectors:
            atom = f"{v.atoms[0].name} {v.atoms[0].cosine:+.2f}" if v.atoms else ""
            known = f"{v.known[0].name} {v.known[0].cosine:+.2f}" if v.known else ""
            numbers = f"{v.objective:.3g}", f"{v.random:.3g}", f"{v.kl:.2f}", f"{v.same:.0%}"
            table.add_row(str(v.number), str(v.cluster), *numbers, atom, known, v.completions[0][:36])
        return rendered(table, f"unperturbed: {self.unperturbed[0][:90]}", width=150)


Vectors = Float[Tensor, "v d"]
