"""The whole search: radius, vectors, what they make the model say, and what they lie close to."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.intervention.direction import Direction
from sparsight.intervention.elicit.clusters import cluster_completions
from sparsight.intervention.elicit.radius import find_radius, knee
from sparsight.intervention.elicit.reach import Power, Reach
from sparsight.intervention.elicit.record import Elicited, FoundVector, Near
from sparsight.intervention.elicit.search import Search, find_vectors
from sparsight.models import LanguageModel, Site

VECTORS_FILE, RECORD_FILE = "vectors.safetensors", "elicited.json"


def elicit(
    lm: LanguageModel,
    prompts: Sequence[str],
    source: Site | str,
    target: Site | str,
    search: Search | None = None,
    *,
    radius: float | int | None = None,
    p: float | int = 2,
    q: float | int = 2,
    last: int | None = None,
    max_new_tokens: int = 12,
    dictionary: AbstractDictionary | None = None,
    known: Mapping[str, Direction | Tensor] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> tuple[Elicited, Float[Tensor, "v d"]]:
    """Perturbations at one site that change another most, and what the model does under each.

    Args:
        lm: A causal model; nothing of it is overwritten.
        prompts: Texts to perturb; `sum_prompts (sum_tokens |Z - Z0|^p)^(1/q)` is maximised over them.
        source: Where perturbations are added, at every token but special ones, also in what is generated.
        target: Where their effect is measured.
        search: How many, how, for how long; its radius counts only if `radius` is not found at the knee.
        radius: Norm of the perturbations; found at the knee of the next token's divergence when None.
        p, q: Exponents.
        last: Count only so many of the last tokens of each prompt.
        max_new_tokens: Length of the completions.
        dictionary: To name the atoms that lie closest, where its site has the source's width.
        known: Directions to compare with, by name.
        out: Folder for the record and the vectors, if they are to be kept.
        progress: Show bars on stderr.
    Returns:
        The record, its vectors ranked, and the vectors themselves by number.
    Raises:
        ValueError: the target is not behind the source, a radius is not positive, or widths differ.
        DataError: the search left what is finite.
        UndefinedMetric: no radius was given and there is no knee.
    """
    reach = Reach(lm, lm.tokenize(list(prompts)), source, target, power=Power(p, q), last=last)
    settings = search or Search()
    points = []
    if radius is None:
        points = find_radius(reach, settings)
        radius = knee(points).radius
    settings = replace(settings, radius=float(radius))
    theta = find_vectors(reach, reach.d, settings, dtype=reach.unperturbed.dtype, progress=progress)
    record = _described(reach, settings, theta, list(prompts), max_new_tokens, dictionary, known or {})
    with torch.no_grad():
        x = lm.activations(reach.tokens, [reach.source])[reach.source][reach.tokens.counted]
    record = record.model_copy(update={"radii": points, "relative": settings.radius / float(x.norm(dim=1).mean())})
    if out is not None:
        _write(Path(out), record, theta)
    return record, theta


def completions_under(
    reach: Reach, theta: Float[Tensor, "v d"], max_new_tokens: int, *, batch_rows: int = 256
) -> list[list[list[int]]]:
    """Token ids of each prompt's greedy completion under each perturbation, which also acts on what is written."""
    n_prompts = len(reach.tokens)
    found: list[list[list[int]]] = []
    for chunk in torch.split(theta, max(1, batch_rows // n_prompts)):
        rows = reach.repeated(len(chunk))
        by_row = chunk.repeat_interleave(n_prompts, dim=0)
        edit = _RowShift(by_row, bool(reach.tokens.special[:, 0].all()))
        written = reach.lm.generate(rows, max_new_tokens=max_new_tokens, edits={reach.source: edit})
        lengths, total = rows.mask.sum(dim=1), written.mask.sum(dim=1)
        new = [written.ids[i, lengths[i] : total[i]].tolist() for i in range(len(rows))]
        found += [new[i : i + n_prompts] for i in range(0, len(new), n_prompts)]
    return found


class _RowShift:
    """Adds one vector to each row, at every token but a special first one."""

    per_token = True

    def __init__(self, rows: Tensor, first_is_special: bool) -> None:
        self._rows, self._first = rows, first_is_special

    def __call__(self, x: Tensor) -> Tensor:
        return self.at(x, torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]))

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        shift = self._rows.to(x).unsqueeze(1)
        return x + shift * (positions.to(x.device) > 0).unsqueeze(-1) if self._first else x + shift


def _described(
    reach: Reach,
    search: Search,
    theta: Float[Tensor, "v d"],
    prompts: list[str],
    max_new_tokens: int,
    dictionary: AbstractDictionary | None,
    known: Mapping[str, Direction | Tensor],
) -> Elicited:
    lm = reach.lm
    said = completions_under(reach, theta, max_new_tokens)
    own = completions_under(reach, torch.zeros_like(theta[:1]), max_new_tokens)[0]
    kinds = cluster_completions(said)
    generator = torch.Generator().manual_seed(search.seed + 1)
    drawn = torch.nn.functional.normalize(torch.randn(8, reach.d, generator=generator), dim=1).to(theta)
    with torch.no_grad():
        objective, random = reach(theta), float(reach(search.radius * drawn).mean())
    kl = reach.kl(theta)
    unit = torch.nn.functional.normalize(theta.double(), dim=1)
    others = (unit @ unit.T).fill_diagonal_(-1.0).max(dim=1).values if len(unit) > 1 else unit.new_zeros(1)
    vectors = [
        FoundVector(
            number=i,
            objective=float(objective[i]),
            random=random,
            kl=float(kl[i]),
            cluster=kinds[i],
            same=sum(a == b for a, b in zip(said[i], own, strict=True)) / len(own),
            completions=[" ".join(lm.tokens_to_strings(torch.tensor(ids, dtype=torch.int64))) for ids in said[i]],
            atoms=_nearest_atoms(unit[i], dictionary),
            known=sorted(
                (Near(name=name, cosine=_cosine(unit[i], one)) for name, one in known.items()),
                key=lambda near: -abs(near.cosine),
            ),
            nearest=float(others[i]),
        )
        for i in range(len(theta))
    ]
    unlike = {kind: sum(1 - v.same for v in vectors if v.cluster == kind) / kinds.count(kind) for kind in set(kinds)}
    vectors.sort(key=lambda v: (-unlike[v.cluster], v.cluster, -v.objective))
    return Elicited(
        model=lm.name,
        source=str(reach.source),
        target=str(reach.target),
        prompts=prompts,
        settings={**asdict(search), "p": reach.power.p, "q": reach.power.q, "max_new_tokens": max_new_tokens},
        radius=float(search.radius),
        relative=0.0,
        radii=[],
        unperturbed=[" ".join(lm.tokens_to_strings(torch.tensor(ids, dtype=torch.int64))) for ids in own],
        vectors=vectors,
        n_clusters=len(set(kinds)),
    )


def _nearest_atoms(unit: Float[Tensor, " d"], dictionary: AbstractDictionary | None, n: int = 3) -> list[Near]:
    if dictionary is None:
        return []
    if dictionary.atoms.shape[1] != len(unit):
        raise ValueError(f"the dictionary has width {dictionary.atoms.shape[1]}, the vectors have {len(unit)}")
    cosines = dictionary.atoms.detach().double().cpu() @ unit.cpu()
    best = cosines.abs().topk(min(n, len(cosines))).indices.tolist()
    return [Near(name=str(i), cosine=float(cosines[i])) for i in best]


def _cosine(unit: Float[Tensor, " d"], other: Direction | Tensor) -> float:
    return Direction(unit.cpu()).cosine(other)


def _write(folder: Path, record: Elicited, theta: Float[Tensor, "v d"]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": theta.detach().cpu().contiguous()}, folder / VECTORS_FILE)
    (folder / RECORD_FILE).write_text(record.to_json() + "\n", encoding="utf-8")
