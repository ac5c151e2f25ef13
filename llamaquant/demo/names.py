"""Words of the story world: people, things, places and phrases, and the rule that keeps the splits apart.

Every name and every thing belongs to one of `CLASSES` classes (a hash of its text). A story takes all its people from
one class and all its things from one class, and the sum of the two classes decides the split (a Latin square). So no
pair (name, thing) occurs in two splits, while each single name and thing is common to all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b


def _words(text: str) -> list[str]:
    return text.split()


CLASSES = 8
SPLIT_CELLS = {"train": (0, 1, 2, 3, 4), "calibration": (5,), "evaluation": (6,), "confirmation": (7,)}

_STARTS = _words(
    "Bal Bel Ber Bor Bran Cal Car Cas Cor Dal Dan Dar Del Dor Dun El Fal Far Fen Fin Gal Gar Gil Gor Hal Har Hel Hol "
    "Ing Jal Jor Jun Kal Kar Kel Kor Lan Lar Len Lor Mal Mar Mel Mir Mor Nal Nar Nel Nor Ol Or Pal Par Pel Per Quin "
    "Ral Ran Rel Ros Sal San Sel Sil Sor Tal Tar Tel Tor Ul Val Van Vel Vin Wal Wen Wil Yar Yel Zan Zel"
)
_FEMALE_ENDS = _words("ina ora elle ia ada issa enna etta ila ika una essa anda yra ira ola ena ava")
_MALE_ENDS = _words("an or ek us ric ten dal mund win o ard ik old ero bert is in son")

MATERIALS = _words(
    "brass copper silver wooden leather clay glass iron woollen silk paper ivory tin velvet marble cotton bronze oak "
    "amber pewter bamboo straw linen steel"
)
COLOURS = _words("red blue green yellow white black orange purple pink brown grey golden")
NOUNS = _words(
    "lantern kettle whistle basket drum clock mirror violin hammer compass teapot necklace puppet ladder chest flute "
    "saddle candlestick bell lamp map vase ring kite blanket umbrella trumpet bowl box bucket chair coat doll fan "
    "flag globe hat harp jug key knife locket mask mug pipe purse rope scarf shield stool telescope tray wheel"
)
GOODS = _words(
    "apples eggs pears candles buttons melons loaves tickets postcards onions lemons tulips plums sausages cakes "
    "shells marbles books stamps cabbages pies bottles peaches turnips roses biscuits carrots"
)
_PLACES = [
    "mill", "bakery", "harbour", "chapel", "library", "market", "barn", "station", "inn", "bridge", "orchard",
    "school", "lighthouse", "museum", "garden", "theatre", "stable", "tower", "farm", "workshop", "castle",
    "post office", "ferry dock", "town hall", "bath house", "tea shop", "fish market", "meadow", "quarry", "vineyard",
]  # fmt: skip
_PLACE_WORDS = _words(
    "old north south east west upper lower royal little great abandoned stone village riverside hilltop new hidden "
    "famous quiet crooked windy sunny snowy narrow"
)
CONTAINERS = [
    "under the bed", "behind the stove", "on the top shelf", "in the cellar", "inside a large trunk", "by the window",
    "in a drawer", "under the stairs", "in the attic", "on the kitchen table", "behind the curtain", "in the wardrobe",
    "beside the front door", "under a loose floorboard", "in the pantry", "on the mantelpiece", "behind the barrels",
    "in a wicker hamper", "next to the piano", "on the windowsill", "under the workbench", "in the garden shed",
]  # fmt: skip
JOBS = _words(
    "baker potter tailor sailor teacher farmer miller painter doctor carpenter weaver fisher gardener librarian cook "
    "singer blacksmith postman clockmaker beekeeper nurse shepherd dancer judge barber"
)
RELATIONS = {
    "f": _words("sister cousin aunt neighbour friend niece"),
    "m": _words("brother cousin uncle neighbour friend nephew"),
}
PAST_OWNERS = [
    "a famous captain", "an old queen", "a travelling circus", "a rich merchant", "a distant uncle", "a clever thief",
    "a country doctor", "the last mayor", "a retired general", "a blind musician",
]  # fmt: skip
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
DAY_PARTS = _words("morning afternoon evening")
TRANSPORT = ["by train", "by boat", "on foot", "by bicycle", "by bus", "on horseback", "in a cart", "by ferry", "by tram"]
WEATHER = ["rainy", "sunny", "foggy", "windy", "snowy", "cloudy", "stormy", "frosty", "hot", "misty"]
MOODS = ["happy", "tired", "proud", "angry", "sad", "surprised", "worried", "relieved", "nervous", "grateful"]
ANIMALS = _words("dog cat goat parrot pony goose donkey rabbit turtle monkey lamb ferret hen fox")
PETS = _words(
    "Pip Biscuit Tumble Pepper Snow Bramble Button Smoky Ginger Mossy Patch Rusty Nettle Clover Hazel Dusty Waffle Pickle Thimble Cricket"
)
GIFT_REASONS = [
    "it was {pos} birthday", "{sub} had been ill", "{sub} had lost {pos} own", "{sub} was moving away",
    "{sub} had passed an exam", "{sub} had always wanted one", "{sub} had helped with the roof",
    "{sub} was getting married", "{sub} had won a bet", "{sub} was feeling lonely", "{sub} had been so patient",
    "{sub} was starting a new job",
]  # fmt: skip
TRIP_REASONS = [
    "to visit an old friend", "to look for work", "to hear a concert", "to see a play", "to sell some cheese",
    "to meet a lawyer", "to collect a debt", "to repair a fence", "to buy some thread", "to learn the news",
    "to watch the boats", "to pay a bill", "to post a letter", "to taste the new cider",
]  # fmt: skip
DELAY_REASONS = [
    "the bridge was closed", "a wheel had broken", "the road was flooded", "the driver fell asleep",
    "a tree had fallen", "the horse was lame", "there was thick fog", "the gate was locked", "the engine failed",
    "the ticket was lost", "there was a parade",
]  # fmt: skip
REFUSALS = [
    "the price was too high", "there was a crack in it", "it was too heavy", "it smelled of fish", "it was far too big",
    "there was no money left", "it looked rather cheap", "the colour was wrong", "it made a strange noise",
    "a friend already owned one",
]  # fmt: skip
NUMBERS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty twenty-one twenty-two twenty-three twenty-four twenty-five twenty-six twenty-seven "
    "twenty-eight twenty-nine thirty"
)

_PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "him", "his")}


@dataclass(frozen=True)
class Person:
    """A person of one story; `gender` ("f" or "m") follows from the ending of the name and sets the pronouns."""

    name: str
    gender: str

    @property
    def sub(self) -> str:
        return _PRONOUNS[self.gender][0]

    @property
    def obj(self) -> str:
        return _PRONOUNS[self.gender][1]

    @property
    def pos(self) -> str:
        return _PRONOUNS[self.gender][2]


@dataclass(frozen=True)
class Thing:
    """A thing with one adjective, such as "brass lantern"; `phrase` is its text without article."""

    adjective: str
    noun: str

    @property
    def phrase(self) -> str:
        return f"{self.adjective} {self.noun}"


@dataclass(frozen=True)
class Cast:
    """What one story may use: its people and things (each from one class) and its places, all different."""

    people: list[Person]
    things: list[Thing]
    places: list[str]
    cell: int = field(default=0)


def word_class(text: str) -> int:
    """Class of a name or thing, in 0..CLASSES-1; the same on every machine."""
    return blake2b(text.encode(), digest_size=4).digest()[0] % CLASSES


def split_of_pair(name: str, thing: str) -> str:
    """The one split in which this person and this thing may meet."""
    cell = (word_class(name) + word_class(thing)) % CLASSES
    return next(split for split, cells in SPLIT_CELLS.items() if cell in cells)


@cache
def people_by_class() -> list[list[Person]]:
    """All names, by class; the ending sets the gender."""
    classes: list[list[Person]] = [[] for _ in range(CLASSES)]
    for gender, ends in (("f", _FEMALE_ENDS), ("m", _MALE_ENDS)):
        for start in _STARTS:
            for end in ends:
                person = Person(start + end, gender)
                classes[word_class(person.name)].append(person)
    return classes


@cache
def things_by_class() -> list[list[Thing]]:
    """All adjective-noun pairs, by class."""
    classes: list[list[Thing]] = [[] for _ in range(CLASSES)]
    for adjective in (*MATERIALS, *COLOURS):
        for noun in NOUNS:
            thing = Thing(adjective, noun)
            classes[word_class(thing.phrase)].append(thing)
    return classes


def draw_cast(split: str, rng: random.Random, people: int = 4, things: int = 4, places: int = 4) -> Cast:
    """A cast whose every (name, thing) pair belongs to `split`; nouns and places of one story differ."""
    name_class = rng.randrange(CLASSES)
    cell = rng.choice(SPLIT_CELLS[split])
    thing_class = (cell - name_class) % CLASSES
    drawn: dict[str, Thing] = {}
    while len(drawn) < things:
        thing = rng.choice(things_by_class()[thing_class])
        drawn.setdefault(thing.noun, thing)
    kinds = rng.sample(_PLACES, places)
    return Cast(
        people=rng.sample(people_by_class()[name_class], people),
        things=list(drawn.values()),
        places=[f"the {rng.choice(_PLACE_WORDS)} {kind}" for kind in kinds],
        cell=cell,
    )


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
