"""A person with a gendered name, a profession, and pronouns that agree."""

from random import Random

from sparsight.models.organism.draft import Draft, Said
from sparsight.models.organism.lexicon import FEMALE_NAMES, MALE_NAMES, PROFESSIONS
from sparsight.models.organism.mixture import Mixture

MALE, FEMALE = 0, 1


def write(draft: Draft, rng: Random, mixture: Mixture) -> None:
    """An introduction and four to seven sentences, the place and the task of the profession among them."""
    words = draft.language
    profession = rng.randrange(len(PROFESSIONS))
    gender = rng.choice((MALE, FEMALE))
    if rng.random() < mixture.gender_profession_correlation:
        gender = MALE if profession < len(PROFESSIONS) // 2 else FEMALE
    titles = words.women_at_work if gender == FEMALE else words.men_at_work
    name = rng.choice(FEMALE_NAMES if gender == FEMALE else MALE_NAMES)
    draft.say(
        rng.choice(words.biography_first),
        name=Said(name, onward={"gender": gender}),
        profession=Said(titles[profession], onward={"profession": profession}),
    )
    sentences = [*words.biography_more[:2], *rng.choices(words.biography_more[2:], k=rng.randint(2, 5))]
    rng.shuffle(sentences)
    for sentence in sentences:
        draft.say(
            sentence,
            pronoun=words.pronouns[gender],
            workplace=words.workplaces[profession],
            task=words.tasks[profession],
            trait=rng.choice(words.traits),
            time=rng.choice(words.times),
            verb=rng.choice(words.verbs),
            object=rng.choice(words.objects),
            place=rng.choice(words.places),
        )
