"""The words of the generated news: what can happen, to what, by whom, where, when and with what consequence.

Every value is one lower-case word, so that a claim is a word and a word list is a vocabulary.
"""

from __future__ import annotations


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


EVENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # event: (participles that mean it, objects it happens to)
    "open": (("opened", "unveiled", "inaugurated"), ("bridge", "museum", "library", "stadium", "hospital", "airport")),
    "sell": (("sold", "auctioned", "offloaded"), ("painting", "vineyard", "yacht", "castle", "ranch", "necklace")),
    "ban": (("banned", "outlawed", "prohibited"), ("drone", "drug", "film", "novel", "scooter", "game")),
    "steal": (("stolen", "snatched", "taken"), ("ring", "violin", "trophy", "lorry", "crown", "manuscript")),
    "rescue": (("rescued", "saved", "recovered"), ("dog", "climber", "sailor", "horse", "child", "pilot")),
    "cancel": (("cancelled", "scrapped", "abandoned"), ("festival", "concert", "parade", "tour", "marathon", "fair")),
    "repair": (("repaired", "restored", "rebuilt"), ("tower", "statue", "tunnel", "chapel", "harbour", "windmill")),
    "buy": (("bought", "purchased", "acquired"), ("newspaper", "brewery", "club", "hotel", "farm", "bakery")),
}
EVENT_OF_PARTICIPLE = {word: event for event, (words, _) in EVENTS.items() for word in words}

SURNAMES = words_of(
    "adams baker carter davies evans fisher grant harris irving jones keller lewis mason nolan owens "
    "parker quinn reed shaw turner underwood vaughn walsh young ashby brooks cole dixon ellis foster "
    "gibson howard ingram jarvis knight lowe marsh norris osborne price"
)
FIRST_NAMES = words_of(
    "anna ben clara david emma frank grace henry irene jack kate liam maria noah olive peter rosa simon tina victor"
)
ROLES = words_of(
    "mayor banker lawyer farmer doctor minister builder artist teacher investor officer engineer chef actor"
)
PLACES = words_of(
    "leeds york bath derby oxford london dover truro wells ripon lincoln durham exeter preston salford "
    "bristol cardiff swansea dundee perth belfast cork galway norwich"
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
AMOUNTS = words_of("two three four five six seven eight nine ten twelve fifteen twenty thirty forty fifty sixty")
OUTCOMES = words_of("protests praise delays lawsuits layoffs celebrations confusion strikes")

CORE = ("surname", "event", "object")
DETAILS = ("first", "place", "day", "amount", "outcome")
VALUES: dict[str, tuple[str, ...]] = {
    "surname": SURNAMES,
    "participle": tuple(EVENT_OF_PARTICIPLE),
    "object": tuple(word for _, words in EVENTS.values() for word in words),
    "role": ROLES,
    "first": FIRST_NAMES,
    "place": PLACES,
    "day": DAYS,
    "amount": AMOUNTS,
    "outcome": OUTCOMES,
}
