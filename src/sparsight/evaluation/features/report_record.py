"""What a feature report says, features, representations and latents apart, with the measured links between them."""

from typing import Literal

from sparsight.evaluation.features.dimension import DimensionRecord
from sparsight.evaluation.features.geometry import GeometryRecord
from sparsight.evaluation.features.linearity import LinearityRecord
from sparsight.evaluation.features.mediation import MediationRecord
from sparsight.evaluation.features.moves import MoveRecord
from sparsight.evaluation.features.rotation import RotationRecord
from sparsight.evaluation.features.site_map import SiteScore
from sparsight.evaluation.frozen_record import Record
from sparsight.evaluation.record import Estimate


class FeatureRecord(Record):
    """A property of the input: what is labelled, and what the labels allow. Nothing here is about a model.

    Attributes:
        name, kind, classes, description: As labelled.
        n_fit, n_judge: Tokens that probes were fitted and judged on.
        n_documents: Documents judged on.
        n_token_types: Token types among the tokens judged on.
        token_identity: Balanced accuracy of one who knows the token and nothing else; 1: a feature of the token alone.
        left_out: Classes that could not be judged, and why.
    """

    name: str
    kind: str
    classes: list[str]
    description: str
    n_fit: int
    n_judge: int
    n_documents: int
    n_token_types: int
    token_identity: float
    left_out: dict[str, str]


class ProbeRecord(Record):
    """One kind of probe at the home site.

    Attributes:
        probe: "difference in means", "discriminant", "logistic", "mlp", or "k-sparse" over the site's own coordinates.
        k: Coordinates that a k-sparse probe reads.
        accuracy: Balanced accuracy on held-out documents.
        selectivity: Accuracy minus that of the same probe on control labels; null where none was fitted.
        converged: Whether the fit reached its tolerance.
    """

    probe: str
    k: int | None = None
    accuracy: Estimate
    selectivity: Estimate | None = None
    converged: bool = True


class HeldOutTypes(Record):
    """A logistic probe on tokens of types that it was not fitted on, in documents that it was not fitted on.

    Attributes:
        accuracy: Balanced accuracy there.
        control: Of a probe for control labels; nothing can be known of types never seen, so it is chance.
        n_types: Token types held out.
    """

    accuracy: Estimate
    control: Estimate | None
    n_types: int


class RepresentationRecord(Record):
    """How a model represents a feature at the sites that were looked at.

    Attributes:
        feature: Name of the feature.
        represented: Whether a linear probe at home beats control labels, or what the token's identity tells, or is
            better than chance on token types never seen; each beyond its interval.
        because: That, in words.
        home: Earliest site of the residual stream where a linear probe is as good as anywhere (within 0.01), chosen on
            documents set apart for it; everything below is measured there.
        beyond_token: Accuracy at home minus that of one who knows the token and nothing else.
        sites: The map.
        probes: Kinds of probe at the home site.
        heldout_types: Null with a reason in `not_measured`.
        linearity: Whether one direction for each class tells it as well as an MLP does; null with a reason in
            `not_measured` where neither tells it.
        dimension, geometry: Of the representation.
        mediation, rotation, moves: By intervention; null with a reason in `not_measured`.
        moves_within: By the class means of each class of `linearity.within.given`.
        not_measured: Why something has no value.
    """

    feature: str
    represented: bool
    because: str
    home: str
    beyond_token: Estimate
    sites: list[SiteScore]
    probes: list[ProbeRecord]
    heldout_types: HeldOutTypes | None
    linearity: LinearityRecord | None
    dimension: DimensionRecord
    geometry: GeometryRecord | None
    mediation: MediationRecord | None
    rotation: RotationRecord | None
    moves: MoveRecord | None
    moves_within: MoveRecord | None
    not_measured: dict[str, str]


class LatentRecord(Record):
    """One latent of a dictionary, and how well it tells one class of a feature from the others.

    Attributes:
        dictionary, site: Which, and where.
        latent: Its index.
        feature, label: What it was chosen for, on training documents.
        auroc_train, auroc: On training and on held-out documents; 0.5 is chance.
        threshold: Of best F1 on training documents.
        f1, precision, recall: Held out, at that threshold.
    """

    dictionary: str
    site: str
    latent: int
    feature: str
    label: str
    auroc_train: float
    auroc: float
    threshold: float
    f1: float
    precision: float
    recall: float


class LatentSetRecord(Record):
    """A set of latents that together tell a feature's classes apart.

    Attributes:
        dictionary, site, feature: Which, where, of what.
        latents: Best first; the fewest whose probe reaches 95 % of the dense probe's accuracy on the choosing
            documents, else the most that were tried.
        enough: Whether they reach it.
        accuracy: Balanced accuracy of the k-sparse probe on held-out documents.
        auroc, f1: Of its scores and answers, mean over classes.
        dense_accuracy: Of logistic regression on the activations at the dictionary's site.
        mediated: Mediated fraction when the set's values are exchanged; null with the reason in `no_mediation`.
        mediated_by_random: The same for as many other latents in use.
        no_mediation: Why there is none.
    """

    dictionary: str
    site: str
    feature: str
    latents: list[int]
    enough: bool
    accuracy: Estimate
    auroc: float
    f1: float
    dense_accuracy: float
    mediated: Estimate | None
    mediated_by_random: float | None
    no_mediation: str | None


class Link(Record):
    """A measured relation between two of the three kinds of thing.

    Attributes:
        source, target: Such as "feature weekday", "representation weekday at 1.resid_post", "topk latent 417".
        measure: What was measured.
        value: Its value.
    """

    source: str
    target: str
    measure: str
    value: float


class FeatureReport(Record):
    """Features of the input, their representations in a model, and the latents that recover them.

    Attributes:
        features, representations, latents, latent_sets: Kept apart.
        links: What was measured between them.
        points: For each feature with circles, the held-out class means in the plane of the first, for the figure.
        notes: What to read with care.
    """

    schema_version: Literal[1] = 1
    sparsight_version: str
    model: str
    sites: list[str]
    given: str | None
    n_tokens: int
    n_documents: int
    seed: int
    level: float
    seconds: float
    features: list[FeatureRecord]
    representations: list[RepresentationRecord]
    latents: list[LatentRecord]
    latent_sets: list[LatentSetRecord]
    links: list[Link]
    points: dict[str, list[tuple[str, float, float]]]
    left_out: dict[str, str]
    notes: list[str]

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """Tables for people: one line for each feature, and one for each set of latents."""
        from sparsight.evaluation.features.report_table import report_table

        return report_table(self)

    def to_html(self) -> str:
        """One page with figures, complete in itself."""
        from sparsight.evaluation.features.report_page import report_page

        return report_page(self)
