"""One forward pass that is read and edited at sites, by hooks that never outlive it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sparsight.errors import ModelError
from sparsight.models.families import Gate, Place
from sparsight.models.site import Site, describe_sites

Edit = Callable[[Tensor], Tensor]
"""From a site's activations `[b, t, d]` to what stands in their place, of the same shape and dtype."""

Positions = Int64[Tensor, "b t"]
"""Of each token of a pass, how many real tokens of its row stand before it: the same on whichever side rows are padded,
and in a pass that reads one new token behind a cache."""


class NotFinite(ValueError):
    """An edit made NaN or infinity of finite activations; `generate` adds the step at which it did."""


def apply_edit(edit: Edit, x: Float[Tensor, "b t d"], positions: Positions) -> Any:
    """What an edit makes of activations.

    An edit may be a plain function of them. One that asks where tokens stand has a method `at(x, positions)` as well.
    """
    placed = getattr(edit, "at", None)
    return edit(x) if placed is None else placed(x, positions)


def is_per_token(edit: Edit) -> bool:
    """Whether an edit says, by an attribute `per_token`, that it sees each token alone, so that a cache may be kept."""
    return bool(getattr(edit, "per_token", False))


def is_replacement(edit: Edit) -> bool:
    """Whether an edit says, by an attribute `replaces`, that what it returns does not depend on what it is given."""
    return bool(getattr(edit, "replaces", False))


class Replacement:
    """An edit that puts known activations in the place of whatever is there.

    At the residual stream nothing that the model computes before it is needed then, and its blocks are not run.
    """

    replaces = True

    def __init__(self, value: Float[Tensor, "b t d"]) -> None:
        self._value = value

    def __call__(self, x: Tensor) -> Tensor:
        return self._value.to(x.dtype)


@dataclass(frozen=True)
class Chain:
    """Several edits of one site, one after the other."""

    edits: tuple[Edit, ...]

    @property
    def per_token(self) -> bool:
        return all(is_per_token(edit) for edit in self.edits)

    def __call__(self, x: Float[Tensor, "b t d"]) -> Any:
        return self.at(x, torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]))

    def at(self, x: Float[Tensor, "b t d"], positions: Positions) -> Any:
        for edit in self.edits:
            x = apply_edit(edit, x, positions)
        return x


def chained(maps: Sequence[Mapping[Site, Edit]]) -> dict[Site, Edit]:
    """Edits of several maps as one: where a site has several, the earlier map's come first."""
    at_site: dict[Site, list[Edit]] = {}
    for edits in maps:
        for site, edit in edits.items():
            at_site.setdefault(site, []).append(edit)
    return {site: found[0] if len(found) == 1 else Chain(tuple(found)) for site, found in at_site.items()}


_Action = Callable[[Tensor], Tensor]


class _PassIsOver(Exception):
    """Raised inside a pass that has seen all it was to see. Not an error, and never reaches a caller."""


class _HandsOn:
    """In the place of a block's own function: hands on what it takes in."""

    def __init__(self, in_tuple: bool) -> None:
        self._in_tuple = in_tuple

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
        return (value,) if self._in_tuple else value


@dataclass(frozen=True)
class Unneeded:
    """Blocks that need not run, since what they compute is replaced.

    Attributes:
        blocks: The first ones of the model.
        in_tuple: Whether they hand on their output in a tuple.
    """

    blocks: tuple[nn.Module, ...] = ()
    in_tuple: bool = False

    @contextmanager
    def passed_by(self) -> Iterator[None]:
        """Inside this they hand on what they take in; hooks on either side of them run as ever."""
        own = [block.__dict__.get("forward") for block in self.blocks]
        try:
            for block in self.blocks:
                block.forward = _HandsOn(self.in_tuple)
            yield
        finally:
            for block, forward in zip(self.blocks, own, strict=True):
                del block.forward
                if forward is not None:  # something else stood in its place before, as for models kept on disk
                    block.forward = forward


class ForwardPass:
    """The reads and edits of one forward pass.

    Hooks and actions are bound methods, not closures: tests check the types of every function at the moment it is
    defined, which costs more than a pass does.

    At one gate, edits come before reads, and a site that is computed earlier before one that is computed later: a read
    sees the edited value of its own site and of every earlier one.

    Attributes:
        reads: Activations of every site read, after the pass.
    """

    def __init__(
        self,
        places: Mapping[Site, Place],
        reads: Sequence[Site],
        edits: Mapping[Site, Edit],
        *,
        stop: bool,
        unneeded: Unneeded,
    ) -> None:
        self.reads: dict[Site, Tensor] = {}
        self._stop = stop
        self._unneeded = unneeded
        self._fired: dict[tuple[str, Site], int] = {("read", site): 0 for site in reads}
        self._fired |= {("edit", site): 0 for site in edits}
        self._bases: dict[Site, Tensor] = {}
        self._batch = (0, 0)
        self._positions: Tensor = torch.zeros(0, 0, dtype=torch.int64)
        self._actions: dict[Gate, list[_Action]] = {}
        for site in sorted({*reads, *edits}):
            place = places[site]
            if site in edits:
                self._add_edit(site, place, edits[site])
            if site in reads:
                self._actions.setdefault(place.read, []).append(partial(self._read, site))

    def _add_edit(self, site: Site, place: Place, edit: Edit) -> None:
        if place.base is None:
            self._actions.setdefault(place.write, []).append(partial(self._edit, site, edit))
            return
        # Sites sort by depth, so the base is kept after all edits of what comes in.
        self._actions.setdefault(place.base, []).append(partial(self._keep_base, site))
        self._actions.setdefault(place.write, []).append(partial(self._edit_sum, site, edit))

    def _edit(self, site: Site, edit: Edit, value: Tensor) -> Tensor:
        self._count("edit", site)
        return _checked(site, value, apply_edit(edit, value, self._positions))

    def _keep_base(self, site: Site, value: Tensor) -> Tensor:
        self._bases[site] = value
        return value

    def _edit_sum(self, site: Site, edit: Edit, branch: Tensor) -> Tensor:
        self._count("edit", site)
        stream = branch + self._bases.pop(site)
        edited = _checked(site, stream, apply_edit(edit, stream, self._positions))
        return branch if edited is stream else branch + (edited - stream)

    def _read(self, site: Site, value: Tensor) -> Tensor:
        self._count("read", site)
        self.reads[site] = value
        return value

    def _count(self, what: str, site: Site) -> None:
        self._fired[what, site] += 1
        if self._fired[what, site] > 1:
            raise ModelError(
                f"site {site} was computed twice in one pass; turn off whatever splits the batch inside the model "
                "(chunked feed-forward, gradient checkpointing)"
            )

    def _is_complete(self) -> bool:
        return all(self._fired.values())

    @contextmanager
    def hooked(self, positions: Positions) -> Iterator[None]:
        """Run the model once on tokens at these positions inside this: hooks are gone afterwards, whatever happens.

        Raises:
            ModelError: the pass ended, and a site was never computed.
            ValueError: an edit returned something of another shape or dtype, or NaN where none was.
        """
        handles = []
        self._batch = (positions.shape[0], positions.shape[1])
        self._positions = positions
        try:
            for gate, actions in self._actions.items():
                handles.append(self._hook(gate, actions))
            try:
                with self._unneeded.passed_by():
                    yield
            except _PassIsOver:
                return
        finally:
            for handle in handles:
                handle.remove()
            self._bases.clear()
            self._actions.clear()  # they refer to this pass, which would live on until garbage is collected
        missing = sorted({site for (_, site), times in self._fired.items() if not times})
        if missing:
            raise ModelError(
                f"the model ran without computing {describe_sites(missing)}; "
                "its modules are not where its family has them, so nothing was read or edited there"
            )

    def _hook(self, gate: Gate, actions: list[_Action]) -> Any:
        if gate.side == "input":
            return gate.module.register_forward_pre_hook(partial(self._before, actions), with_kwargs=True)
        return gate.module.register_forward_hook(partial(self._after, actions))

    def _before(self, actions: list[_Action], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self._apply(actions, args[0]), *args[1:]), kwargs
        # Some transformers releases pass everything by name; then the first is the hidden states.
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: self._apply(actions, kwargs[name])}

    def _after(self, actions: list[_Action], _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._apply(actions, output[0]), *output[1:])
        return self._apply(actions, output)

    def _apply(self, actions: list[_Action], value: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        # The MLP of OPT works on all tokens in a row.
        flat = value.dim() == 2
        if flat:
            value = value.view(*self._batch, -1)
        for action in actions:
            value = action(value)
        if self._stop and self._is_complete():
            raise _PassIsOver
        return value.flatten(0, 1) if flat else value


def _checked(site: Site, before: Tensor, after: Any) -> Tensor:
    """What an edit returned, if it can stand in the place of what it was given."""
    if not isinstance(after, Tensor):
        raise ValueError(f"the edit at {site} must return a tensor, got {type(after).__name__}")
    if after.shape != before.shape or after.dtype != before.dtype or after.device != before.device:
        wanted, got = (f"{list(t.shape)} {t.dtype} on {t.device}" for t in (before, after))
        raise ValueError(f"the edit at {site} must return {wanted}, got {got}; keep the shape, and cast with .to(x)")
    if after is not before and not bool(torch.isfinite(after).all()):
        spoilt = ~torch.isfinite(after) & torch.isfinite(before)  # padding may hold anything, and keep it
        if bool(spoilt.any()):
            n = int(spoilt.any(dim=-1).sum())
            raise NotFinite(
                f"the edit at {site} made NaN or infinity of finite activations at {n} tokens; lower its dose"
            )
    return after
