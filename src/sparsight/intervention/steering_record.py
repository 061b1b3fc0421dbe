"""What steering leaves behind: one line for each dose."""

from typing import Literal

from sparsight.evaluation.frozen_record import Record


class Dose(Record):
    """What one strength does.

    Attributes:
        strength: Multiple of the latent's largest observed value, or of the direction's length.
        value: The latent's value, or the length added, in the units of the activations.
        relative: Mean `|x' - x| / mean |x|` over the counted tokens of the neutral text.
        behaviour: Share of prompts whose continuation scores above a half.
        control: The same for control vectors of equal change, averaged; None where none were asked for.
        kl: Mean divergence of next-token distributions on the neutral text, nats per token.
        loss: Next-token loss on the neutral text, nats per token.
        loss_added: Loss over the unedited one, less 1.
        repetition: Share of pairs of neighbouring words in a continuation that came before in it, averaged.
        moved: Other latents that change by more than a tenth of their largest value after re-encoding, per token.
        reencoded: The latent's mean value after re-encoding, over the value it was set to; None for directions.
        example: The first continuation.
    """

    strength: float
    value: float
    relative: float
    behaviour: float
    control: float | None
    kl: float
    loss: float
    loss_added: float
    repetition: float
    moved: float | None
    reencoded: float | None
    example: str


class Steering(Record):
    """A dose-response curve.

    Attributes:
        model, site: Of what.
        steered: The latent or the direction.
        unit: Value of strength 1, in the units of the activations.
        n_prompts, n_neutral: Prompts continued, and counted tokens of neutral text.
        baseline: Share of prompts that show the behaviour unedited.
        loss: Of the neutral text, unedited.
        doses: In the order asked for.
    """

    schema_version: Literal[1] = 1
    model: str
    site: str
    steered: str
    unit: float
    n_prompts: int
    n_neutral: int
    baseline: float
    loss: float
    doses: list[Dose]

    def best(self, wanted: float = 0.9) -> Dose | None:
        """The dose of least neutral loss among those that reach a share of the prompts; None if none does."""
        reached = [dose for dose in self.doses if dose.behaviour >= wanted]
        return min(reached, key=lambda dose: dose.loss) if reached else None

    def to_json(self) -> str:
        """One JSON object."""
        return self.model_dump_json(indent=2)

    def to_table(self) -> str:
        """One dose in each line."""
        from sparsight.evaluation.tables import rendered, titled

        title = (
            f"{self.steered} at {self.site} of {self.model}: strength 1 is {self.unit:.4g}; {self.n_prompts} prompts, "
            f"{self.baseline:.0%} show the behaviour unedited; loss {self.loss:.4g} on {self.n_neutral:,} other tokens"
        )
        heads = ("strength", "|dx|/|x|", "shows", "control", "loss", "KL", "repeats", "others", "goes on")
        table = titled(title, *heads)
        for d in self.doses:
            control = "" if d.control is None else f"{d.control:.0%}"
            others = "" if d.moved is None else f"{d.moved:.1f}"
            numbers = f"{d.relative:.2f}", f"{d.behaviour:.0%}", control, f"{d.loss_added:+.1%}"
            table.add_row(f"{d.strength:g}", *numbers, f"{d.kl:.3f}", f"{d.repetition:.0%}", others, d.example[:50])
        return rendered(table, width=140)
