"""One evaluation, piece by piece: the pass over the rows, and what stands beside it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.dictionaries import AbstractDictionary
from sparsight.errors import DataError, UndefinedMetric
from sparsight.evaluation import sums as terms
from sparsight.evaluation.approximate import Approximate, ApproximateCode, spread_rows
from sparsight.evaluation.baselines import Moments, Reconstruct, baselines_of, measure_baselines
from sparsight.evaluation.breakdown import NORM, POSITION, Grouping, by_label, by_norm, by_position
from sparsight.evaluation.coders import Code, coder_of, describe, reconstruction
from sparsight.evaluation.core_records import BaselineRecord, GapRecord, TokenSide
from sparsight.evaluation.gap import heldout_gap
from sparsight.evaluation.identities import identities_of
from sparsight.evaluation.loss_record import measure_loss, splice_identity
from sparsight.evaluation.panel_pass import shrinkage_panel
from sparsight.evaluation.reading import Predicts, StoredActivations, reported, row_blocks
from sparsight.evaluation.record import Evaluation, LossRecord, SearchRecord
from sparsight.evaluation.record_values import Drawn, Resampling
from sparsight.evaluation.retraining import Retrained, records_of, retrained
from sparsight.evaluation.sides import Reading, SiteSums, reading_of
from sparsight.evaluation.special_tokens import special_side
from sparsight.evaluation.splice import FromSite, KnownLosses
from sparsight.evaluation.summary import summary
from sparsight.evaluation.sums import Sums
from sparsight.evaluation.token_policy import FIRST, OUTLYING, TokenPolicy, side_note

DEFAULT_BY = (POSITION, NORM, "domain")
MOST_CLASSES = 64  # of a label that tokens are broken down by


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an evaluation is asked for; see `evaluate`."""

    coder: str | None = None
    k: int | None = None
    search: Approximate | None = None
    split: str = "heldout"
    n_tokens: int | None = None
    loss_tokens: int | None = 65_536
    shrinkage_tokens: int = 0
    gap_tokens: int = 65_536
    baseline_tokens: int = 8192
    random_model_tokens: int = 0
    by: Sequence[str] | None = None
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    policy: TokenPolicy = field(default_factory=TokenPolicy)
    batch_size: int = 4096
    seed: int = 0
    force: bool = False
    known: KnownLosses | None = None
    progress: bool = False


class Measuring:
    """The state of one evaluation.

    Args:
        dictionary: Measured.
        store: One store, or one for each site of a crosscoder.
        site: Where, if not at the dictionary's own site.
        settings: What is asked for.
        resampling: How intervals are drawn.
    """

    def __init__(
        self,
        dictionary: AbstractDictionary,
        store: StoredActivations | Sequence[StoredActivations],
        site: Any,
        settings: Settings,
        resampling: Resampling,
    ) -> None:
        self.dictionary, self.store, self._site = dictionary, store, site
        self.settings, self.resampling = settings, resampling
        self.reading = reading_of(dictionary, store, settings.split, site, force=settings.force)
        if settings.shrinkage_tokens and self.reading.columns:
            raise ValueError("a shrinkage panel is of one site, got a crosscoder; leave shrinkage_tokens at 0")
        self.part = self.reading.part
        self.device = dictionary.atoms.device
        self.code: Code = coder_of(dictionary, settings.coder, settings.k, len(self.part), settings.search)
        self.sums: Sums
        self.by_site: SiteSums
        self.drawn: Drawn
        self.retrained: list[Retrained] = []

    def pass_over_rows(self) -> None:
        """Mean and norms first, then everything that adds up over tokens."""
        settings, reading = self.settings, self.reading
        blocks = row_blocks(len(self.part), settings.batch_size, settings.n_tokens)
        passes = 2 if settings.policy.outliers else 3
        with reported("measuring", passes * sum(b.stop - b.start for b in blocks), shown=settings.progress) as advance:
            frame = reading.frame(blocks, self.device, advance, settings.policy)
            groupings = self._groupings(frame)
            labels = [grouping.by for grouping in groupings if grouping.by not in (POSITION, NORM)]
            offset = reading.weigh(self.dictionary.b_dec.detach())
            self.sums = Sums(frame, self.dictionary.n_latents, offset, settings.policy, groupings)
            self.by_site = SiteSums(reading.columns, frame)
            for block in blocks:
                x, y = reading.rows(block, self.device)
                z = self.code(x)
                with torch.no_grad():
                    y_hat = reading.weigh(self.dictionary.reconstruct(x, z))
                rows = reading.facts(block, y, settings.policy, frame.longest, labels)
                self.sums.add(y, y_hat, z, rows)
                self.by_site.add(y, y_hat, rows.document_ids)
                advance(block.stop - block.start)
        self.drawn = self.resampling.over(self.sums.documents)

    def _groupings(self, frame: terms.Frame) -> list[Grouping]:
        held = self.part.label_names
        asked = self.settings.by
        names = [n for n in DEFAULT_BY if n in (POSITION, NORM, *held)] if asked is None else list(dict.fromkeys(asked))
        found = []
        for name in names:
            if name == POSITION:
                found.append(by_position())
            elif name == NORM:
                edges = [frame.norms.percentile(10 * i) for i in range(1, 10)] if frame.longest < float("inf") else []
                found.append(by_norm(torch.tensor(sorted(set(edges)), dtype=torch.float64)))
            elif name in held:
                found.append(by_label(name, self._classes(name)))
            else:
                raise ValueError(
                    f"by must name 'position', 'norm' or labels of the store ({', '.join(held) or 'it has none'}), "
                    f"got {name!r}"
                )
        return found

    def _classes(self, name: str) -> tuple[str, ...]:
        given = self.settings.classes.get(name)
        if given is not None:
            return tuple(given)
        blocks = row_blocks(len(self.part), 65_536)
        highest = max(int(self.part.labels(block)[name].max()) for block in blocks)
        if highest >= MOST_CLASSES:
            raise ValueError(f"{name!r} has {highest + 1} classes, at most {MOST_CLASSES} can be told apart here")
        return tuple(str(i) for i in range(highest + 1))

    def searched(self) -> SearchRecord | None:
        """What an approximate search did."""
        search = self.settings.search
        if not isinstance(self.code, ApproximateCode) or search is None:
            return None
        rows = spread_rows(lambda block: self.reading.rows(block, self.device)[0], len(self.part), search.checked)
        return self.code.record(rows)

    def loss(self, model: Predicts | None) -> tuple[LossRecord | None, str | None]:
        """The loss added, or why there is none."""
        if model is None:
            return None, "no model was given"
        if not model.has_causal_loss:
            return None, f"{model.name} ({model.family}) has no causal loss"
        if len(self.reading.columns) > 1:
            return None, "a crosscoder reads several sites at once, so it replaces none of them"
        coded = reconstruction(self.dictionary, self.code)
        spliced = coded if self.reading.reads is None else FromSite(self.reading.reads, coded)
        try:
            found = measure_loss(
                model,
                self.part,
                self.reading.site,
                spliced,
                self.sums.frame.mean,
                self.resampling,
                self.settings.loss_tokens,
                self.settings.progress,
                self.settings.known,
            )
        except UndefinedMetric as error:
            return None, str(error)
        return found, None

    def token_sides(self, model: Predicts | None) -> list[TokenSide]:
        """What each kind of token does to the headline."""
        policy = self.settings.policy
        sides = [self.sums.cells.side(kind, policy.left_out) for kind in (OUTLYING, FIRST)]
        simple = self.reading.reads is None and not self.reading.columns
        if simple and model is not None and hasattr(model, "activations"):
            frame = self.sums.frame
            side = special_side(
                model, self.part, self.reading.site, self.dictionary, self.code, frame.mean, policy, frame.longest
            )
            sides += [] if side is None else [side]
        return sides

    def gap(self) -> tuple[GapRecord | None, str | None]:
        """Training documents against held-out ones, or why not."""
        if not self.settings.gap_tokens:
            return None, "not asked for"
        if self.settings.split != "heldout":
            return None, f"the {self.settings.split} side was measured; the gap is of the held-out side"
        try:
            train = reading_of(self.dictionary, self.store, "train", self._site, force=self.settings.force)
            found = heldout_gap(
                self.dictionary,
                train,
                self.code,
                self.drawn,
                self.resampling,
                n_tokens=self.settings.gap_tokens,
                policy=self.settings.policy,
                batch_size=self.settings.batch_size,
            )
        except (DataError, UndefinedMetric) as error:
            return None, str(error)
        return found, None

    def baselines(self, model: Predicts | None) -> tuple[list[BaselineRecord], str | None]:
        """What no trained dictionary scores, or why it is not known."""
        n = self.settings.baseline_tokens
        if not n:
            return [], "not asked for"
        if self.reading.columns or self.reading.reads is not None:
            return [], "baselines are of dictionaries that reconstruct the one site they read"
        try:
            fitted = reading_of(self.dictionary, self.store, "train", self._site, force=self.settings.force)
        except DataError:
            fitted = self.reading
        x_fit, _ = self._sample(fitted, 2 * n)
        x, ids = self._sample(self.reading, n)
        l0 = self.sums.l0.value
        arms: dict[str, Reconstruct] = {"dictionary": self._own_arm()}
        arms |= baselines_of(Moments.of(x_fit), self.dictionary.n_latents, l0, self.settings.seed)
        causal = model if model is not None and model.has_causal_loss else None
        loss_tokens = min(n, self.settings.loss_tokens or n)
        measured = partial(measure_baselines, arms, x, ids, self.resampling)
        try:
            found = measured(model=causal, part=self.part, site=self.reading.site, loss_tokens=loss_tokens)
        except UndefinedMetric:  # nothing is predicted in these contexts
            found = measured()
        return found + self._of_random_model(model), None

    def _of_random_model(self, model: Predicts | None) -> list[BaselineRecord]:
        """What training a dictionary like this one gives on this model, and on one that has learnt nothing."""
        settings = self.settings
        if not settings.random_model_tokens:
            return []
        if not isinstance(self.store, StoredActivations):
            raise ValueError("a random model is compared for one store; leave random_model_tokens at 0")
        self.retrained = retrained(
            self.dictionary,
            self.store,
            model,
            self.reading.site,
            n_tokens=settings.random_model_tokens,
            n_heldout=settings.baseline_tokens,
            seed=settings.seed,
        )
        return records_of(self.retrained, self.resampling)

    def _own_arm(self) -> Reconstruct:
        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            taken = x.to(self.dictionary.atoms)
            with torch.no_grad():
                z = self.code(taken)
                return self.dictionary.reconstruct(taken, z).to(x), z.l0().double()

        return reconstruct

    def _sample(self, reading: Reading, n: int) -> tuple[Float[Tensor, "n d"], Tensor]:
        blocks = row_blocks(len(reading.part), 128, n)
        rows = [reading.rows(block, self.device)[1] for block in blocks]
        return torch.cat(rows), torch.cat([reading.part.tokens(block).document_ids for block in blocks])

    def record(self, model: Predicts | None, began: float) -> Evaluation:
        """Everything, put together."""
        settings, resampling = self.settings, self.resampling
        panel = None
        if settings.shrinkage_tokens:
            blocks = row_blocks(len(self.part), settings.batch_size, settings.shrinkage_tokens)
            panel = shrinkage_panel(self.dictionary, self.reading, self.code, blocks, self.device)
        searched = self.searched()  # before the other passes code more rows
        loss, no_loss_because = self.loss(model)
        gap, no_gap_because = self.gap()
        baselines, no_baselines_because = self.baselines(model)
        sides = self.token_sides(model)
        measured = summary(self.sums, self.drawn)
        identities = identities_of(self.sums, measured["shrinkage"])
        if loss is not None and model is not None:
            identities.append(splice_identity(model, self.part, self.reading.site))
        # Outlying tokens have a note of their own, which says what share of the variance they carry.
        notes = measured.pop("notes") + [side_note(s) for s in sides if s.differ and s.n_tokens and s is not sides[0]]
        notes += [f"identity broken: {i.identity}, by {i.residual:.3g}" for i in identities if not i.holds]
        return Evaluation(
            sparsight_version=_version(),
            dictionary=describe(self.dictionary),
            site=str(self.reading.site),
            model=self.reading.model,
            split=settings.split,
            coder=settings.coder or "encoder",
            k=settings.k,
            search=searched,
            token_policy=str(settings.policy),
            level=resampling.level,
            n_resamples=resampling.n_resamples,
            seed=resampling.seed,
            shrinkage_panel=panel,
            loss=loss,
            no_loss_because=no_loss_because,
            by_site=self.by_site.records(self.reading.places, resampling.estimate),
            breakdowns=tuple(breakdown.record(resampling) for breakdown in self.sums.breakdowns),
            token_sides=tuple(sides),
            baselines=tuple(baselines),
            no_baselines_because=no_baselines_because,
            gap=gap,
            no_gap_because=no_gap_because,
            identities=tuple(identities),
            notes=notes,
            seconds=time.perf_counter() - began,
            **measured,
        )


def _version() -> str:
    from importlib.metadata import version

    return version("sparsight")
