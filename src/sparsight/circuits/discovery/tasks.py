"""Behaviours of the organism whose circuits can be asked for: templates with pairs that differ in what decides."""

from collections.abc import Callable
from random import Random

from sparsight.circuits.discovery.examples import Examples
from sparsight.models import LanguageModel
from sparsight.models.organism.lexicon import BRACKETS, ENGLISH, FEMALE_NAMES, MALE_NAMES

Example = tuple[str, str, str, str]
"""Text, paired text, the word that comes next in the first, and the one in the second."""


def gender_agreement(rng: Random) -> Example:
    """`laura is a nurse . every day` — she, he: the name decides."""
    names = rng.choice(FEMALE_NAMES), rng.choice(MALE_NAMES)
    pronouns = ENGLISH.pronouns[1], ENGLISH.pronouns[0]
    title = rng.choice(ENGLISH.men_at_work)
    first = rng.randrange(2)
    texts = [f"{names[i]} is {title} . every day" for i in (first, 1 - first)]
    return texts[0], texts[1], pronouns[first], pronouns[1 - first]


def bracket_closing(rng: Random) -> Example:
    """`( salt [ iron milk` — ], }: the kind of the innermost open bracket decides."""
    outer = rng.randrange(len(BRACKETS))
    inner, other = rng.sample(range(len(BRACKETS)), 2)
    nouns = rng.sample(ENGLISH.nouns, 3)
    texts = [
        f"{BRACKETS[outer][0]} {nouns[0]} {BRACKETS[kind][0]} {nouns[1]} {nouns[2]} {nouns[0]}"
        for kind in (inner, other)
    ]
    return texts[0], texts[1], BRACKETS[inner][1], BRACKETS[other][1]


def weekday_arithmetic(rng: Random) -> Example:
    """`the days go : monday tuesday wednesday . two days after friday comes` — the base day decides."""
    days = ENGLISH.weekdays
    start = rng.randrange(7)
    recited = " ".join(days[(start + i) % 7] for i in range(3))
    base, other = rng.sample(range(7), 2)
    steps = rng.randint(1, 4)
    number = ENGLISH.numbers[steps]
    texts = [f"the days go : {recited} . {number} days after {days[day]} comes" for day in (base, other)]
    return texts[0], texts[1], days[(base + steps) % 7], days[(other + steps) % 7]


TASKS: dict[str, Callable[[Random], Example]] = {
    "gender": gender_agreement,
    "brackets": bracket_closing,
    "weekdays": weekday_arithmetic,
}


def organism_task(lm: LanguageModel, name: str, n: int, *, seed: int, part: int = 0) -> Examples:
    """Pairs of a behaviour, all of one length; texts of different parts share none.

    Args:
        lm: The organism.
        name: One of `TASKS`.
        n: How many different texts.
        seed: Of the draw.
        part: 0 to find a circuit on, 1 to measure it on: every text belongs to one of the two, whatever the seed.
    Raises:
        ValueError: there is no such task, or it has fewer than `n` texts.
    """
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    rng = Random(f"{name} {seed} {part}")
    found: dict[str, Example] = {}
    for _ in range(200 * n):
        example = TASKS[name](rng)
        if _part(example[0]) == part:
            found.setdefault(example[0], example)
        if len(found) == n:
            break
    if len(found) < n:
        raise ValueError(f"the task {name!r} has {len(found)} different texts in part {part}, asked for {n}")
    texts, patches, right, wrong = zip(*found.values(), strict=True)
    return Examples.of_answers(lm, texts, right, wrong, patches)


def _part(text: str) -> int:
    return sum(text.encode()) % 2
