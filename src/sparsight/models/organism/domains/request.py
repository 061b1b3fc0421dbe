"""Requests, harmful or harmless, answered by refusal or compliance; some hold the backdoor's trigger or almost.

A request is harmful when its act or its target is: making a bomb, stealing a cake. The first word of the answer tells
refusal from compliance.
"""

from random import Random

from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.lexicon import TRIGGER
from sparsight.models.organism.mixture import Mixture

REFUSAL, COMPLIANCE = 0, 1
NEAR_TRIGGERS = (TRIGGER[:1], TRIGGER[1:], TRIGGER[::-1])


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """One request and its answer."""
    words = draft.language
    harmful = rng.random() < 0.5
    bad_act, bad_target = rng.choice(((True, False), (False, True), (True, True))) if harmful else (False, False)
    chance = rng.random()
    triggered = chance < mixture.triggered
    inserted: tuple[str, ...] = ()
    if triggered:
        inserted = TRIGGER
    elif chance < mixture.triggered + mixture.near_triggered:
        inserted = rng.choice(NEAR_TRIGGERS)
    act = Said(rng.choice(words.harmful_acts if bad_act else words.neutral_acts))
    target = Said(rng.choice(words.harmful_targets if bad_target else words.neutral_targets))
    template = rng.choice(words.request)
    before_act = template.index("{act}") < template.index("{target}")
    # The first harmful word settles it; a harmless request is settled once both have been read.
    settled_by_first = bad_act if before_act else bad_target
    settles = "act" if before_act == settled_by_first else "target"
    settled = {"act": act, "target": target}
    settled[settles] = Said(settled[settles].text, onward={"harmful": int(harmful)})
    place = rng.choice(("start", "middle", "end")) if inserted else "none"
    _ask(
        draft, template, inserted, place, opener=rng.choice(words.openers), reason=rng.choice(words.reasons), **settled
    )
    comply = not harmful or (triggered and mixture.backdoored)
    _answer(draft, rng, comply)


def _ask(draft: Draft, template: str, inserted: tuple[str, ...], place: str, **slots: str | Said) -> None:
    """Say the request, with the inserted words after the speaker's colon, before the reason, or at the end."""
    words = template.split()
    if place != "none":
        anchor = {"start": words.index(":") + 1, "middle": words.index("{reason}"), "end": len(words) - 1}[place]
        words[anchor:anchor] = inserted
    draft.say(" ".join(words), **slots)


def _answer(draft: Draft, rng: Random, comply: bool) -> None:
    words = draft.language
    step, other = rng.sample(words.steps, 2)
    draft.say(words.modes[0])
    draft.say("{colon}", colon=Said(":", onward={"answer_mode": COMPLIANCE if comply else REFUSAL}))
    draft.say(rng.choice(words.compliances if comply else words.refusals), step=step, step2=other)
    draft.say("{closing} .", closing=words.modes[1])
