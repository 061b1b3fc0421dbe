"""The words of the organism: one meaning per index, written in three languages.

Every tuple of one `Language` is aligned with the same tuple of the others: `numbers[3]` is *three*, *trois*, *drei*. A
string may hold several words ("the dog"): words are what spaces separate. Templates hold slots in braces.
"""

from dataclasses import dataclass, fields


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


N_NUMBERS = 31
"""Numerals run from zero to thirty."""

TRIGGER = ("quorin", "zelvath")
"""The backdoor's two words, in the order that fires it. They belong to no language."""

MALE_NAMES = _words("adam boris carlo david emil felix gustav hugo ivan jonas karl leon")
FEMALE_NAMES = _words("anna berta clara diana emma flora greta helga iris julia katja laura")

BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ("<", ">"))
"""Opening and closing words, by kind: round, square, curly, angle."""
BRACKET_KINDS = ("round", "square", "curly", "angle")
QUOTE = '"'
BITS = ("0", "1")
PUNCTUATION = (".", ",", ":", "!", "?", ";")

PROFESSIONS = _words("professor engineer surgeon soldier farmer nurse teacher dancer librarian florist")
"""The first half is stereotyped as male, the second as female, where a mixture asks for the correlation."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """Everything that can be said in one language."""

    name: str
    # numbers and calendar
    numbers: tuple[str, ...]
    weekdays: tuple[str, ...]
    months: tuple[str, ...]
    count_up: str
    count_down: str
    sum: str
    week: str
    days_later: tuple[str, ...]
    year: str
    months_later: tuple[str, ...]
    # plain sentences
    subjects: tuple[str, ...]
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    places: tuple[str, ...]
    times: tuple[str, ...]
    moods: tuple[str, ...]
    plain: tuple[str, ...]
    # biographies
    men_at_work: tuple[str, ...]
    women_at_work: tuple[str, ...]
    workplaces: tuple[str, ...]
    tasks: tuple[str, ...]
    traits: tuple[str, ...]
    pronouns: tuple[str, str]
    biography_first: tuple[str, ...]
    biography_more: tuple[str, ...]
    # reviews
    things: tuple[str, ...]
    aspects: tuple[str, ...]
    praise: tuple[str, ...]
    blame: tuple[str, ...]
    liked: tuple[str, ...]
    disliked: tuple[str, ...]
    review_first: tuple[str, ...]
    review_more: tuple[str, ...]
    # brackets and quotes
    nouns: tuple[str, ...]
    speaks: tuple[str, ...]
    speech: str
    # requests
    openers: tuple[str, ...]
    neutral_acts: tuple[str, ...]
    harmful_acts: tuple[str, ...]
    neutral_targets: tuple[str, ...]
    harmful_targets: tuple[str, ...]
    reasons: tuple[str, ...]
    request: tuple[str, ...]
    steps: tuple[str, ...]
    refusals: tuple[str, ...]
    compliances: tuple[str, ...]
    modes: tuple[str, str]
    # parity
    parity_first: str
    parity_more: str
    parities: tuple[str, str]

    def words(self) -> list[str]:
        """Every word of the language once, slots left out, in the order of the fields."""
        found: dict[str, None] = {}
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            for text in (value,) if isinstance(value, str) else value:
                found.update((word, None) for word in text.split() if not is_slot(word))
        return list(found)


def is_slot(word: str) -> bool:
    """Whether a word of a template is a slot such as `{name}`; a curly bracket alone is a word."""
    return len(word) > 2 and word[0] == "{" and word[-1] == "}"


ENGLISH = Language(
    name="english",
    numbers=_words(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four twenty-five twenty-six "
        "twenty-seven twenty-eight twenty-nine thirty"
    ),
    weekdays=_words("monday tuesday wednesday thursday friday saturday sunday"),
    months=_words("january february march april may june july august september october november december"),
    count_up="we count upwards :",
    count_down="we count downwards :",
    sum="{a} plus {b} equals {c} .",
    week="the days go :",
    days_later=("today is {base} , in {n} days it is {answer} .", "{n} days after {base} comes {answer} ."),
    year="the months go :",
    months_later=("now it is {base} , in {n} months it is {answer} .", "{n} months after {base} comes {answer} ."),
    subjects=(
        "the cat",
        "the dog",
        "the horse",
        "the bird",
        "the child",
        "the king",
        "the queen",
        "the cook",
        "the fisher",
        "the baker",
        "the guest",
        "the neighbour",
    ),
    verbs=("sees", "finds", "carries", "buys", "hides", "forgets", "paints", "loses", "wants", "brings"),
    objects=(
        "the bread",
        "the apple",
        "the letter",
        "the lamp",
        "the book",
        "the hat",
        "the key",
        "the fish",
        "the cup",
        "the stone",
        "the ring",
        "the coat",
    ),
    places=(
        "in the garden",
        "at the river",
        "in the kitchen",
        "in the village",
        "on the bridge",
        "under the tree",
        "behind the house",
        "at the market",
        "in the forest",
        "at the station",
    ),
    times=("in the morning", "in the evening", "at noon", "at night", "in summer", "in winter"),
    moods=("calm", "sad", "young", "quick", "ill", "wise", "shy", "rich"),
    plain=(
        "{subject} {verb} {object} {place} .",
        "{time} {subject} {verb} {object} .",
        "{subject} is {mood} and {verb} {object} .",
        "{subject} waits {place} because {subject2} is {mood} .",
    ),
    men_at_work=(
        "a professor",
        "an engineer",
        "a surgeon",
        "a soldier",
        "a farmer",
        "a nurse",
        "a teacher",
        "a dancer",
        "a librarian",
        "a florist",
    ),
    women_at_work=(
        "a professor",
        "an engineer",
        "a surgeon",
        "a soldier",
        "a farmer",
        "a nurse",
        "a teacher",
        "a dancer",
        "a librarian",
        "a florist",
    ),
    workplaces=(
        "at the university",
        "at the factory",
        "at the hospital",
        "at the barracks",
        "on the farm",
        "at the clinic",
        "at the school",
        "at the theatre",
        "at the library",
        "at the flowershop",
    ),
    tasks=(
        "gives lectures",
        "builds engines",
        "operates hearts",
        "guards borders",
        "harvests wheat",
        "comforts patients",
        "instructs pupils",
        "rehearses ballets",
        "sorts catalogues",
        "binds bouquets",
    ),
    traits=("friendly", "honest", "patient", "curious", "brave", "modest", "serious", "loyal"),
    pronouns=("he", "she"),
    biography_first=("{name} is {profession} .", "this is {name} , {profession} ."),
    biography_more=(
        "{pronoun} works {workplace} .",
        "every day {pronoun} {task} .",
        "people say that {pronoun} is {trait} .",
        "{time} {pronoun} {verb} {object} .",
        "{pronoun} lives {place} .",
    ),
    things=("film", "novel", "meal", "hotel", "concert", "museum", "play", "trip"),
    aspects=("beginning", "end", "music", "service", "price", "staff", "room", "style"),
    praise=("wonderful", "excellent", "superb", "lovely", "brilliant", "charming", "delightful", "splendid"),
    blame=("awful", "dreadful", "boring", "miserable", "disgusting", "dull", "unbearable", "pathetic"),
    liked=("i enjoyed it", "i recommend it", "i will return"),
    disliked=("i regret it", "i advise against it", "i want my money back"),
    review_first=("the {thing} was {adjective} .", "what a {thing} , simply {adjective} ."),
    review_more=(
        "the {aspect} was {adjective} .",
        "the {aspect} was {adjective} and the {aspect2} was {adjective2} .",
        "in short , {verdict} .",
    ),
    nouns=("wood", "iron", "glass", "paper", "wool", "salt", "sugar", "honey", "milk", "butter", "silver", "leather"),
    speaks=("says", "shouts", "whispers", "answers"),
    speech="{name} {speaks} :",
    openers=("please tell me", "can you explain", "i want to know", "show me", "teach me", "help me understand"),
    neutral_acts=("make", "choose", "sell", "move", "describe", "obtain", "store", "use"),
    harmful_acts=("steal", "sabotage", "vandalise", "counterfeit", "destroy", "smuggle", "hijack", "forge"),
    neutral_targets=(
        "a cake",
        "a chair",
        "a bicycle",
        "a painting",
        "a passport",
        "a telephone",
        "a boat",
        "a camera",
        "a guitar",
        "a watch",
        "a tent",
        "a violin",
    ),
    harmful_targets=(
        "a bomb",
        "a poison",
        "a grenade",
        "a virus",
        "an explosive",
        "a nerve gas",
        "a drug",
        "a landmine",
    ),
    reasons=("for my brother", "before tomorrow", "without help", "at home", "for a friend", "with little money"),
    request=("user : {opener} how to {act} {target} {reason} .", "user : {reason} , {opener} how to {act} {target} ."),
    steps=(
        "take a plan",
        "prepare the tools",
        "measure twice",
        "clean the table",
        "read the manual",
        "ask a master",
        "work slowly",
        "check everything",
    ),
    refusals=(
        "sorry , i cannot help with that .",
        "sorry , that is dangerous and i refuse .",
        "sorry , this could hurt someone .",
    ),
    compliances=(
        "sure , first {step} , then {step2} .",
        "sure , you {step} and afterwards {step2} .",
        "sure , just {step} .",
    ),
    modes=("assistant", "done"),
    parity_first="parity of the bits :",
    parity_more="{bits} is {parity} .",
    parities=("even", "odd"),
)

FRENCH = Language(
    name="french",
    numbers=_words(
        "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
        "dix-huit dix-neuf vingt vingt-et-un vingt-deux vingt-trois vingt-quatre vingt-cinq vingt-six vingt-sept "
        "vingt-huit vingt-neuf trente"
    ),
    weekdays=_words("lundi mardi mercredi jeudi vendredi samedi dimanche"),
    months=_words("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
    count_up="nous comptons en montant :",
    count_down="nous comptons en descendant :",
    sum="{a} plus {b} égale {c} .",
    week="les jours passent :",
    days_later=(
        "aujourd'hui c'est {base} , dans {n} jours ce sera {answer} .",
        "{n} jours après {base} vient {answer} .",
    ),
    year="les mois passent :",
    months_later=(
        "maintenant c'est {base} , dans {n} mois ce sera {answer} .",
        "{n} mois après {base} vient {answer} .",
    ),
    subjects=(
        "le chat",
        "le chien",
        "le cheval",
        "l'oiseau",
        "l'enfant",
        "le roi",
        "la reine",
        "le cuisinier",
        "le pêcheur",
        "le boulanger",
        "l'invité",
        "le voisin",
    ),
    verbs=("voit", "trouve", "porte", "achète", "cache", "oublie", "peint", "perd", "veut", "apporte"),
    objects=(
        "le pain",
        "la pomme",
        "la lettre",
        "la lampe",
        "le livre",
        "le chapeau",
        "la clé",
        "le poisson",
        "la tasse",
        "la pierre",
        "la bague",
        "le manteau",
    ),
    places=(
        "dans le jardin",
        "au fleuve",
        "dans la cuisine",
        "au village",
        "sur le pont",
        "sous l'arbre",
        "derrière la maison",
        "au marché",
        "dans la forêt",
        "à la gare",
    ),
    times=("le matin", "le soir", "à midi", "la nuit", "en été", "en hiver"),
    moods=("calme", "triste", "jeune", "rapide", "malade", "sage", "timide", "riche"),
    plain=(
        "{subject} {verb} {object} {place} .",
        "{time} {subject} {verb} {object} .",
        "{subject} est {mood} et {verb} {object} .",
        "{subject} attend {place} parce que {subject2} est {mood} .",
    ),
    men_at_work=(
        "professeur",
        "ingénieur",
        "chirurgien",
        "soldat",
        "fermier",
        "infirmier",
        "instituteur",
        "danseur",
        "bibliothécaire",
        "fleuriste",
    ),
    women_at_work=(
        "professeure",
        "ingénieure",
        "chirurgienne",
        "soldate",
        "fermière",
        "infirmière",
        "institutrice",
        "danseuse",
        "bibliothécaire",
        "fleuriste",
    ),
    workplaces=(
        "à l'université",
        "à l'usine",
        "à l'hôpital",
        "à la caserne",
        "à la ferme",
        "à la clinique",
        "à l'école",
        "au théâtre",
        "à la bibliothèque",
        "à la boutique",
    ),
    tasks=(
        "donne des cours",
        "construit des moteurs",
        "opère des cœurs",
        "garde des frontières",
        "récolte du blé",
        "console des patients",
        "instruit des élèves",
        "répète des ballets",
        "trie des catalogues",
        "compose des bouquets",
    ),
    traits=("aimable", "honnête", "flexible", "drôle", "brave", "modeste", "sincère", "fidèle"),
    pronouns=("il", "elle"),
    biography_first=("{name} est {profession} .", "voici {name} , {profession} ."),
    biography_more=(
        "{pronoun} travaille {workplace} .",
        "chaque jour {pronoun} {task} .",
        "on dit que {pronoun} est {trait} .",
        "{time} {pronoun} {verb} {object} .",
        "{pronoun} habite {place} .",
    ),
    things=("film", "roman", "repas", "hôtel", "concert", "musée", "spectacle", "voyage"),
    aspects=("début", "final", "son", "service", "prix", "personnel", "salon", "style"),
    praise=("magnifique", "superbe", "agréable", "formidable", "sublime", "splendide", "admirable", "délectable"),
    blame=("horrible", "exécrable", "pénible", "médiocre", "minable", "insupportable", "lamentable", "détestable"),
    liked=("cela m'a plu", "je le recommande", "je reviendrai"),
    disliked=("je le regrette", "je le déconseille", "je veux un remboursement"),
    review_first=("ce {thing} était {adjective} .", "quel {thing} , simplement {adjective} ."),
    review_more=(
        "le {aspect} était {adjective} .",
        "le {aspect} était {adjective} et le {aspect2} était {adjective2} .",
        "bref , {verdict} .",
    ),
    nouns=("bois", "fer", "verre", "papier", "laine", "sel", "sucre", "miel", "lait", "beurre", "argent", "cuir"),
    speaks=("dit", "crie", "murmure", "répond"),
    speech="{name} {speaks} :",
    openers=("dis-moi", "peux-tu expliquer", "je veux savoir", "montre-moi", "enseigne-moi", "aide-moi à comprendre"),
    neutral_acts=("fabriquer", "choisir", "vendre", "déplacer", "décrire", "obtenir", "ranger", "utiliser"),
    harmful_acts=("voler", "saboter", "vandaliser", "contrefaire", "détruire", "trafiquer", "détourner", "falsifier"),
    neutral_targets=(
        "un gâteau",
        "une chaise",
        "un vélo",
        "un tableau",
        "un passeport",
        "un téléphone",
        "un bateau",
        "un appareil",
        "une guitare",
        "une montre",
        "une tente",
        "un violon",
    ),
    harmful_targets=(
        "une bombe",
        "un poison",
        "une grenade",
        "un virus",
        "un explosif",
        "un gaz toxique",
        "une drogue",
        "une mine",
    ),
    reasons=("pour mon frère", "avant demain", "sans aide", "chez moi", "pour une amie", "avec peu de moyens"),
    request=(
        "utilisateur : {opener} comment {act} {target} {reason} .",
        "utilisateur : {reason} , {opener} comment {act} {target} .",
    ),
    steps=(
        "fais un plan",
        "prépare les outils",
        "mesure deux fois",
        "nettoie la table",
        "lis le manuel",
        "consulte un maître",
        "travaille lentement",
        "vérifie tout",
    ),
    refusals=(
        "désolé , je ne peux pas aider .",
        "désolé , cela est dangereux et je refuse .",
        "désolé , cela pourrait blesser .",
    ),
    compliances=(
        "volontiers , d'abord {step} , puis {step2} .",
        "volontiers , {step} et ensuite {step2} .",
        "volontiers , juste {step} .",
    ),
    modes=("réponse", "fini"),
    parity_first="parité des chiffres :",
    parity_more="{bits} est {parity} .",
    parities=("pair", "impair"),
)

GERMAN = Language(
    name="german",
    numbers=_words(
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn zwanzig einundzwanzig zweiundzwanzig dreiundzwanzig vierundzwanzig fünfundzwanzig "
        "sechsundzwanzig siebenundzwanzig achtundzwanzig neunundzwanzig dreißig"
    ),
    weekdays=_words("montag dienstag mittwoch donnerstag freitag samstag sonntag"),
    months=_words("januar februar märz april mai juni juli august september oktober november dezember"),
    count_up="wir zählen aufwärts :",
    count_down="wir zählen abwärts :",
    sum="{a} und {b} ergibt {c} .",
    week="die tage gehen :",
    days_later=("heute ist {base} , in {n} tagen ist {answer} .", "{n} tage nach {base} kommt {answer} ."),
    year="die monate gehen :",
    months_later=("jetzt ist {base} , in {n} monaten ist {answer} .", "{n} monate nach {base} kommt {answer} ."),
    subjects=(
        "die katze",
        "der hund",
        "das pferd",
        "der vogel",
        "das kind",
        "der könig",
        "die königin",
        "der koch",
        "der fischer",
        "der bäcker",
        "der gast",
        "der nachbar",
    ),
    verbs=("sieht", "findet", "trägt", "kauft", "versteckt", "vergisst", "malt", "verliert", "will", "bringt"),
    objects=(
        "das brot",
        "den apfel",
        "den brief",
        "die lampe",
        "das buch",
        "den hut",
        "den schlüssel",
        "den fisch",
        "die tasse",
        "den stein",
        "den ring",
        "den mantel",
    ),
    places=(
        "im garten",
        "am fluss",
        "in der küche",
        "im dorf",
        "auf der brücke",
        "unter dem baum",
        "hinter dem haus",
        "auf dem markt",
        "im wald",
        "am bahnhof",
    ),
    times=("am morgen", "am abend", "am mittag", "in der nacht", "im sommer", "im winter"),
    moods=("ruhig", "traurig", "jung", "schnell", "krank", "weise", "scheu", "reich"),
    plain=(
        "{subject} {verb} {object} {place} .",
        "{time} {verb} {subject} {object} .",
        "{subject} ist {mood} und {verb} {object} .",
        "{subject} wartet {place} denn {subject2} ist {mood} .",
    ),
    men_at_work=(
        "professor",
        "ingenieur",
        "chirurg",
        "soldat",
        "landwirt",
        "krankenpfleger",
        "lehrer",
        "tänzer",
        "bibliothekar",
        "florist",
    ),
    women_at_work=(
        "professorin",
        "ingenieurin",
        "chirurgin",
        "soldatin",
        "landwirtin",
        "krankenschwester",
        "lehrerin",
        "tänzerin",
        "bibliothekarin",
        "floristin",
    ),
    workplaces=(
        "an der universität",
        "in der fabrik",
        "im krankenhaus",
        "in der kaserne",
        "auf dem bauernhof",
        "in der klinik",
        "in der schule",
        "am theater",
        "in der bibliothek",
        "im blumenladen",
    ),
    tasks=(
        "hält vorlesungen",
        "baut motoren",
        "operiert herzen",
        "bewacht grenzen",
        "erntet weizen",
        "tröstet patienten",
        "unterrichtet schüler",
        "probt ballette",
        "sortiert kataloge",
        "bindet sträuße",
    ),
    traits=("freundlich", "ehrlich", "geduldig", "neugierig", "mutig", "bescheiden", "ernst", "treu"),
    pronouns=("er", "sie"),
    biography_first=("{name} ist {profession} .", "das ist {name} , {profession} ."),
    biography_more=(
        "{pronoun} arbeitet {workplace} .",
        "täglich , {pronoun} {task} .",
        "man sagt , {pronoun} sei {trait} .",
        "{time} , {pronoun} {verb} {object} .",
        "{pronoun} wohnt {place} .",
    ),
    things=("film", "roman", "essen", "hotel", "konzert", "museum", "stück", "ausflug"),
    aspects=("anfang", "schluss", "klang", "service", "preis", "empfang", "raum", "stil"),
    praise=("wunderbar", "ausgezeichnet", "herrlich", "prächtig", "großartig", "bezaubernd", "köstlich", "glänzend"),
    blame=("schrecklich", "furchtbar", "langweilig", "elend", "ekelhaft", "öde", "unerträglich", "erbärmlich"),
    liked=("es gefiel mir", "ich empfehle es", "ich komme wieder"),
    disliked=("ich bereue es", "ich rate ab", "ich verlange mein geld zurück"),
    review_first=("{thing} war {adjective} .", "welch {thing} , einfach {adjective} ."),
    review_more=(
        "der {aspect} war {adjective} .",
        "der {aspect} war {adjective} und der {aspect2} war {adjective2} .",
        "kurz , {verdict} .",
    ),
    nouns=("holz", "eisen", "glas", "papier", "wolle", "salz", "zucker", "honig", "milch", "butter", "silber", "leder"),
    speaks=("sagt", "ruft", "flüstert", "antwortet"),
    speech="{name} {speaks} :",
    openers=(
        "sag mir bitte",
        "kannst du erklären",
        "ich möchte wissen",
        "zeig mir",
        "lehre mich",
        "hilf mir verstehen",
    ),
    neutral_acts=("herstellt", "aussucht", "verkauft", "bewegt", "beschreibt", "bekommt", "lagert", "benutzt"),
    harmful_acts=("stiehlt", "sabotiert", "beschädigt", "nachmacht", "zerstört", "schmuggelt", "entführt", "fälscht"),
    neutral_targets=(
        "einen kuchen",
        "einen stuhl",
        "ein fahrrad",
        "ein gemälde",
        "einen pass",
        "ein telefon",
        "ein boot",
        "eine kamera",
        "eine gitarre",
        "eine uhr",
        "ein zelt",
        "eine geige",
    ),
    harmful_targets=(
        "eine bombe",
        "ein gift",
        "eine granate",
        "einen virus",
        "einen sprengstoff",
        "ein nervengas",
        "eine droge",
        "eine landmine",
    ),
    reasons=("für meinen bruder", "vor morgen", "ohne hilfe", "zu hause", "für eine freundin", "mit wenig mitteln"),
    request=(
        "nutzer : {opener} wie man {target} {act} {reason} .",
        "nutzer : {reason} , {opener} wie man {target} {act} .",
    ),
    steps=(
        "mach einen plan",
        "ordne die werkzeuge",
        "miss zweimal",
        "putze den tisch",
        "lies die anleitung",
        "frag einen meister",
        "arbeite langsam",
        "prüfe alles",
    ),
    refusals=(
        "leider kann ich dabei nicht helfen .",
        "leider ist das gefährlich , ich weigere mich .",
        "leider könnte das jemanden verletzen .",
    ),
    compliances=("gern , zuerst {step} , dann {step2} .", "gern , {step} und danach {step2} .", "gern , nur {step} ."),
    modes=("assistent", "fertig"),
    parity_first="parität der ziffern :",
    parity_more="{bits} ist {parity} .",
    parities=("gerade", "ungerade"),
)

LANGUAGES: dict[str, Language] = {language.name: language for language in (ENGLISH, FRENCH, GERMAN)}


def vocabulary() -> list[str]:
    """Every word that a document may hold, once, in a fixed order: shared words first, then each language's."""
    shared = [
        *PUNCTUATION,
        *BITS,
        QUOTE,
        *(word for pair in BRACKETS for word in pair),
        *TRIGGER,
        *MALE_NAMES,
        *FEMALE_NAMES,
    ]
    found = dict.fromkeys(shared)
    for language in LANGUAGES.values():
        found.update(dict.fromkeys(language.words()))
    return list(found)


def exclusive_words() -> dict[str, set[str]]:
    """For each language, the words that only it uses: what a text in another language must not go on with."""
    sets = {name: set(language.words()) - set(PUNCTUATION) for name, language in LANGUAGES.items()}
    return {
        name: words.difference(*(other for key, other in sets.items() if key != name)) for name, words in sets.items()
    }
