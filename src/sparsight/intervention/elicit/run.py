"""The whole search: radius, vectors, what they make the model say, and what they lie close to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.intervention.direction import Direction, fitting
from sparsight.intervention.elicit.clusters import cluster_completions
from sparsight.intervention.elicit.perturbation import Adapters, Perturbations, Vectors
from sparsight.intervention.elicit.radius import find_radius, knee
from sparsight.intervention.elicit.reach import Power, Reach
from sparsight.intervention.elicit.record import Elicited, FoundVector, Near
from sparsight.intervention.elicit.search import Search, find_adapters, find_vectors
from sparsight.intervention.elicit.settings import Elicitation
from sparsight.intervention.latent_edits import check_made_for
from sparsight.models import LanguageModel, Site

VECTORS_FILE, ADAPTERS_FILE, RECORD_FILE = "vectors.safetensors", "adapters.safetensors", "elicited.json"

Found = TypeVar("Found", bound=Perturbations)


def elicit(
    lm: LanguageModel,
    prompts: Sequence[str],
    source: Site | str,
    target: Site | str,
    search: Search | None = None,
    settings: Elicitation | None = None,
    **fields: Any,
) -> tuple[Elicited, Float[Tensor, "v d"]]:
    """Perturbations at one site that change another most, and what the model does under each.

    Args:
        lm: A causal model; nothing of it is overwritten.
        prompts: Texts to perturb.
        source: Where perturbations are added, at every token but special ones, also in what is generated.
        target: Where their effect is measured.
        search: How many, how, for how long; its radius is replaced by that of the settings or at the knee.
        settings: All else: radius, exponents, completions, what to compare with, where to keep it.
        fields: Fields of the settings by name: `radius=4.0` is `Elicitation(radius=4.0)`.
    Returns:
        The record, its vectors ranked, and the vectors themselves by number.
    Raises:
        ValueError: the target is not behind the source, a radius is not positive, or widths differ.
        DataError: the search left what is finite, or the dictionary or a known direction is of another model.
        UndefinedMetric: no radius was given and there is no knee.
    """
    asked = _Asked.of(lm, prompts, source, target, search, settings, fields)
    reach, progress = asked.reach, asked.settings.progress

    def find(search: Search) -> Vectors:
        return Vectors(find_vectors(reach, reach.d, search, dtype=reach.unperturbed.dtype, progress=progress))

    record, found = _searched(asked, find)
    _keep(asked, record, VECTORS_FILE, {"vectors": found.theta})
    return record, found.theta


def elicit_adapters(
    lm: LanguageModel,
    prompts: Sequence[str],
    source: Site | str,
    target: Site | str,
    search: Search | None = None,
    settings: Elicitation | None = None,
    *,
    rank: int = 1,
    **fields: Any,
) -> tuple[Elicited, Adapters]:
    """`elicit` with perturbations that read what they are added to: `x + R sum_r (a_r . x / |x|) b_r`.

    Cosines with atoms and known directions are those of the directions written. Random ones, for comparison, read what
    the adapters read and write along random directions.

    Args:
        lm, prompts, source, target, settings, fields: As for `elicit`.
        search: The same; "adam", and not one after another.
        rank: Directions read and written by each.
    Returns:
        The record, its adapters ranked, and the adapters themselves by number.
    Raises:
        ValueError, DataError, UndefinedMetric: as `elicit` and `find_adapters`.
    """
    asked = _Asked.of(lm, prompts, source, target, search, settings, fields)

    def find(search: Search) -> Adapters:
        return find_adapters(asked.reach, search, rank=rank, progress=asked.settings.progress)

    record, found = _searched(asked, find, rank)
    _keep(asked, record, ADAPTERS_FILE, {"read": found.read, "write": found.write})
    return record, found


@dataclass(frozen=True)
class _Asked:
    """Where a search is made, how, and what is to be said of what it finds.

    Raises:
        ValueError, DataError: an atom or a known direction is no direction of the source.
    """

    reach: Reach
    prompts: Sequence[str]
    search: Search
    settings: Elicitation

    @staticmethod
    def of(
        lm: LanguageModel,
        prompts: Sequence[str],
        source: Site | str,
        target: Site | str,
        search: Search | None,
        settings: Elicitation | None,
        fields: Mapping[str, Any],
    ) -> "_Asked":
        """The arguments of `elicit`."""
        said = replace(settings or Elicitation(), **fields)
        reach = Reach(lm, lm.tokenize(list(prompts)), source, target, power=Power(said.p, said.q), last=said.last)
        return _Asked(reach, prompts, search or Search(), said)

    def __post_init__(self) -> None:
        if self.settings.dictionary is not None:
            check_made_for(self.settings.dictionary, self.reach.lm, self.reach.source)
        for direction in (self.settings.known or {}).values():
            fitting(direction, self.reach.lm, [self.reach.source])


def _searched(asked: _Asked, find: Callable[[Search], Found], rank: int = 0) -> tuple[Elicited, Found]:
    """The radius, what is found at it, and what that does."""
    reach, radius, points = asked.reach, asked.settings.radius, []
    if radius is None:
        points = find_radius(reach, asked.search, find=find)
        radius = knee(points).radius
    search = replace(asked.search, radius=float(radius))
    found = find(search)
    vectors, own = _described(asked, found, search.seed)
    told = {
        "p": reach.power.p,
        "q": reach.power.q,
        "max_new_tokens": asked.settings.max_new_tokens,
        "adapter_rank": rank,
    }
    record = Elicited(
        model=reach.lm.name,
        source=str(reach.source),
        target=str(reach.target),
        prompts=list(asked.prompts),
        settings={**asdict(search), **told},
        radius=search.radius,
        relative=search.radius / reach.mean_norm(),
        radii=points,
        unperturbed=own,
        vectors=vectors,
        n_clusters=len({vector.cluster for vector in vectors}),
    )
    return record, found


def completions_under(
    reach: Reach, what: Tensor | Perturbations, max_new_tokens: int, *, batch_rows: int = 256
) -> list[list[list[int]]]:
    """Token ids of each prompt's greedy completion under each perturbation, which also acts on what is written."""
    n_prompts = len(reach.tokens)
    found: list[list[list[int]]] = []
    for part in reach.parts(what, batch_rows):
        rows = reach.repeated(len(part))
        edit = _WhileWriting(part, bool(reach.tokens.special[:, 0].all()))
        written = reach.lm.generate(rows, max_new_tokens=max_new_tokens, edits={reach.source: edit})
        lengths, total = rows.mask.sum(dim=1), written.mask.sum(dim=1)
        new = [written.ids[i, lengths[i] : total[i]].tolist() for i in range(len(rows))]
        found += [new[i : i + n_prompts] for i in range(0, len(new), n_prompts)]
    return found


class _WhileWriting:
    """Adds perturbation `i` to the `i`-th block of rows, at every token but a special first one."""

    per_token = True

    def __init__(self, what: Perturbations, first_is_special: bool) -> None:
        self._what, self._first = what, first_is_special

    def __call__(self, x: Tensor) -> Tensor:
        return self.at(x, torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]))

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        blocks = x.view(len(self._what), -1, *x.shape[1:])
        added = self._what.added(blocks).expand_as(blocks).reshape(x.shape)
        return x + added * (positions.to(x.device) > 0).unsqueeze(-1) if self._first else x + added


def _described(asked: _Asked, what: Perturbations, seed: int) -> tuple[list[FoundVector], list[str]]:
    """Every perturbation with what it does, ranked; and what the model goes on with by itself."""
    reach = asked.reach
    said = completions_under(reach, what, asked.settings.max_new_tokens)
    own = completions_under(reach, torch.zeros(1, reach.d), asked.settings.max_new_tokens)[0]
    kinds = cluster_completions(said)
    with torch.no_grad():
        objective = reach(what)
        random = float(reach(what.controls(8, torch.Generator().manual_seed(seed + 1))).mean())
    kl, written = reach.kl(what), what.written()
    others = what.likeness().fill_diagonal_(-1.0).max(dim=1).values if len(what) > 1 else [0.0]
    vectors = [
        FoundVector(
            number=i,
            objective=float(objective[i]),
            random=random,
            kl=float(kl[i]),
            cluster=kinds[i],
            same=sum(a == b for a, b in zip(said[i], own, strict=True)) / len(own),
            completions=_texts(reach.lm, said[i]),
            atoms=_nearest_atoms(written[i], asked.settings.dictionary),
            known=_nearest_known(written[i], asked.settings.known or {}),
            nearest=float(others[i]),
        )
        for i in range(len(what))
    ]
    unlike = {kind: sum(1 - v.same for v in vectors if v.cluster == kind) / kinds.count(kind) for kind in set(kinds)}
    vectors.sort(key=lambda v: (-unlike[v.cluster], v.cluster, -v.objective))
    return vectors, _texts(reach.lm, own)


def _texts(lm: LanguageModel, rows: list[list[int]]) -> list[str]:
    return [" ".join(lm.tokens_to_strings(torch.tensor(ids, dtype=torch.int64))) for ids in rows]


def _nearest_atoms(written: Float[Tensor, "r d"], dictionary: AbstractDictionary | None, n: int = 3) -> list[Near]:
    if dictionary is None:
        return []
    atoms = dictionary.atoms.detach().double().cpu()
    cosines = _largest(atoms @ written.cpu().T)
    best = cosines.abs().topk(min(n, len(cosines))).indices.tolist()
    return [Near(name=str(i), cosine=float(cosines[i])) for i in best]


def _nearest_known(written: Float[Tensor, "r d"], known: Mapping[str, Direction | Tensor]) -> list[Near]:
    near = []
    for name, one in known.items():
        cosines = torch.tensor([[Direction(row.cpu()).cosine(one) for row in written]], dtype=torch.float64)
        near.append(Near(name=name, cosine=float(_largest(cosines)[0])))
    return sorted(near, key=lambda one: -abs(one.cosine))


def _largest(cosines: Float[Tensor, "n r"]) -> Float[Tensor, " n"]:
    """Of each row the one of largest size, with its sign."""
    best = cosines.abs().argmax(dim=1, keepdim=True)
    return cosines.gather(1, best)[:, 0]


def _keep(asked: _Asked, record: Elicited, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Record and tensors in the folder that was named, if one was."""
    if asked.settings.out is None:
        return
    from safetensors.torch import save_file

    folder = Path(asked.settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / name)
    (folder / RECORD_FILE).write_text(record.to_json() + "\n", encoding="utf-8")
