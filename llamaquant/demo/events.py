"""What can happen in the story world: every event changes the state and tells the narrator about it."""

from __future__ import annotations

import random

from llamaquant.demo import names
from llamaquant.demo.grammar import Fact, Narrator, Span, Value
from llamaquant.demo.names import NUMBERS, Cast, Person, Thing, article


class Scene:
    """State of one story (who holds what, what lies where, who is where, how many are left) and its events."""

    def __init__(self, cast: Cast, rng: random.Random) -> None:
        self.cast, self.rng = cast, rng
        self.narrator = Narrator(rng)
        self.holder: dict[Thing, Person] = {}
        self.puts: dict[Thing, list[Fact]] = {}
        self.spot: dict[Thing, Fact] = {}
        self.place: dict[Person, str] = {}
        self.known_place: dict[str, bool] = {}
        self._containers = rng.sample(names.CONTAINERS, 6)
        self._days = rng.sample(names.DAYS, 3)
        self._past_owners = rng.sample(names.PAST_OWNERS, 4)
        self._goods = rng.sample(names.GOODS, 2)

    # --- people -------------------------------------------------------------------------------------------------

    def introduce(self, person: Person, home: str) -> None:
        """Name, work, age and home of the main person; age or work may stay open."""
        job, age = self.rng.choice(names.JOBS), str(self.rng.randrange(19, 80))
        told = self.rng.choice(("both", "both", "job", "age"))
        templates = {
            "both": (
                "Near {home} lived {a_job} named {S}, who was {age} years old.",
                "{S} was {a_job} of {age} who lived beside {home}.",
                "{S}, {a_job} aged {age}, had a small house near {home}.",
            ),
            "job": (
                "{S} worked as {a_job} and lived near {home}.",
                "There was once {a_job} called {S} who lived close to {home}.",
            ),
            "age": ("{S} was {age} years old and lived beside {home}.", "{S}, aged {age}, lived close to {home}."),
        }[told]
        self.narrator.say(
            *templates, kind="person", S=person, home=home, a_job=article(job),
            job=None if told == "age" else job, age=None if told == "job" else age, not_job=self._other(names.JOBS, job),
        )  # fmt: skip
        self.place[person] = home

    def relate(self, person: Person, other: Person) -> None:
        """`other` is a relative or friend of `person`; the work of `other` may stay open."""
        relation = self.rng.choice(names.RELATIONS[other.gender])
        job = self.rng.choice(names.JOBS) if self.rng.random() < 0.6 else None
        mood = self.rng.choice(names.MOODS)
        if job:
            templates = (
                "{S.pos} {relation} {Q} was {a_job}.", "{Q}, {S.pos} {relation}, earned a living as {a_job}.",
                "{S.pos} {relation}, {a_job} called {Q}, came by nearly every day.",
            )  # fmt: skip
        else:
            templates = (
                "{S.pos} {relation} {Q} lived in the same street.", "{S.pos} closest companion was a {relation}, {Q}.",
                "{Q}, {S.pos} {relation}, was staying for the summer.",
            )  # fmt: skip
        self.narrator.say(
            *templates, kind="relation", S=person, Q=other, relation=relation, job=job, mood=mood,
            a_job=article(job) if job else None, not_relation=self._other(names.RELATIONS[other.gender], relation),
        )  # fmt: skip

    def keep_pet(self, person: Person) -> None:
        animal, pet = self.rng.choice(names.ANIMALS), self.rng.choice(names.PETS)
        color = self.rng.choice(names.COLOURS[:11]) if self.rng.random() < 0.7 else None
        kind = f"{color} {animal}" if color else animal
        self.narrator.say(
            "{S} kept {a_kind} called {pet}.", "{S} never went far without {pet}, {a_kind}.",
            "{S} owned {a_kind} whose name was {pet}.",
            kind="pet", S=person, a_kind=article(kind), animal=animal, pet=pet, color=color,
        )  # fmt: skip

    def feel(self, person: Person) -> None:
        mood = self.rng.choice(names.MOODS)
        self.narrator.say(
            "In the end {S} felt very {mood}.", "{S} went to bed feeling {mood}.", "That night {S} was {mood}.",
            kind="mood", S=person, mood=mood, not_mood=self._other(names.MOODS, mood),
        )  # fmt: skip

    # --- travel -------------------------------------------------------------------------------------------------

    def travel(self, person: Person, place: str) -> None:
        """`person` goes to `place`; when, how and what for are each told or left open."""
        when = f"{self._days.pop()} {self.rng.choice(names.DAY_PARTS)}" if self.rng.random() < 0.7 else None
        how = self.rng.choice(names.TRANSPORT) if self.rng.random() < 0.7 else None
        why = self.rng.choice(names.TRIP_REASONS) if self.rng.random() < 0.65 else None
        core = self.rng.choice(("{S} went", "{S} travelled", "{S} set off"))
        template = core + (" {how}" if how else "") + " to {place}" + (" {why}" if why else "") + "."
        if when:
            template = self.rng.choice(("On {when} ", "Early on {when} ", "Late on {when} ")) + template
        self.narrator.say(
            template, kind="travel", S=person, place=place, when=when, how=how, why=why, home=self.place.get(person),
            not_how=self._other(names.TRANSPORT, how), not_place=self._other(self.cast.places, place),
        )  # fmt: skip
        self.place[person] = place

    def weather(self) -> None:
        weather = self.rng.choice(names.WEATHER)
        self.narrator.say(
            "It was a {weather} day.", "The day was {weather}.", "The weather had been {weather} since dawn.",
            kind="weather", weather=weather, not_weather=self._other(names.WEATHER, weather),
        )  # fmt: skip

    def delay(self, person: Person) -> None:
        hours = NUMBERS[self.rng.randrange(2, 10)]
        self.narrator.say(
            "{S} arrived {hours} hours late because {why}.", "Because {why}, {S} came {hours} hours late.",
            kind="delay", S=person, hours=f"{hours}", why=self.rng.choice(names.DELAY_REASONS),
        )  # fmt: skip

    def meet(self, person: Person, other: Person, thing: Thing) -> None:
        job = self.rng.choice(names.JOBS) if self.rng.random() < 0.6 else None
        who = ", {a_job}," if job else ""
        self.narrator.say(
            "On the way {S} met {Q}" + who + " who was carrying {T}.",
            "{S} ran into {Q}" + who + " who had {T} under one arm.",
            kind="meet", S=person, Q=other, T=thing, job=job, a_job=article(job) if job else None,
        )  # fmt: skip
        self.holder[thing] = other

    def stay(self, person: Person) -> None:
        nights = NUMBERS[self.rng.randrange(2, 15)]
        self.narrator.say(
            "{S} stayed there for {nights} nights.", "{S} remained at {place} for {nights} nights.",
            kind="stay", S=person, nights=nights, place=self.place[person],
        )  # fmt: skip

    # --- things -------------------------------------------------------------------------------------------------

    def buy(self, person: Person, thing: Thing, seller: Person | None) -> None:
        """`person` buys `thing` where they are; seller and price may stay open."""
        price = NUMBERS[self.rng.randrange(2, 31)] if self.rng.random() < 0.7 else None
        template = "{S} bought {T}" + (" from {R}" if seller else "") + (" for {price} coins." if price else ".")
        options = [template, "There " + template]
        if price and seller:
            options.append("There {R} sold {T} to {S} for {price} coins.")
        self.narrator.say(
            *options, kind="buy", S=person, T=thing, R=seller, price=price, place=self.place[person],
            not_T=self.rng.choice([t for t in self.cast.things if t != thing]),
        )  # fmt: skip
        self.holder[thing] = person

    def refuse(self, person: Person, thing: Thing) -> None:
        self.narrator.say(
            "{S} looked at {T} as well, but did not take it because {why}.",
            "{S} wanted {T} too, but left it behind because {why}.",
            kind="refuse", S=person, T=thing, why=self.rng.choice(names.REFUSALS), answer="no",
        )  # fmt: skip

    def own(self, person: Person, thing: Thing) -> None:
        self.narrator.say(
            "The dearest thing {S} owned was {T}.", "{S} had {T} that once belonged to " + self._past_owners.pop() + ".",
            "For years {S} had carried {T} everywhere.", "{S} was very fond of {T} from " + self._past_owners.pop() + ".",
            kind="own", S=person, T=thing,
        )  # fmt: skip
        self.holder[thing] = person

    def put(self, person: Person, thing: Thing, moved: bool = False) -> None:
        """`person` leaves `thing` in a spot; with `moved` it had another spot before."""
        spot = self._containers.pop()
        options = (
            ("Later {S} moved {T} and left it {spot}.", "The next day {S} took {T} away and hid it {spot}.",
             "After supper {S} found a better place for {T}, {spot}.")
            if moved
            else ("{S} put {T} {spot}.", "Back at home {S} left {T} {spot}.")
        )  # fmt: skip
        fact = self.narrator.say(*options, kind="move" if moved else "put", S=person, T=thing, spot=spot)
        self.puts.setdefault(thing, []).append(fact)
        self.spot[thing] = fact

    def give(self, person: Person, thing: Thing, receiver: Person) -> None:
        """`thing` changes hands; the reason may stay open. A spot known before no longer holds."""
        why = None
        if self.rng.random() < 0.65:
            why = self.rng.choice(names.GIFT_REASONS).format(sub=receiver.sub, pos=receiver.pos)
        tail = " because {why}." if why else "."
        self.narrator.say(
            "{S} gave {T} to {R}" + tail, "{S} decided that {R} should have {T}" + tail,
            "A week later {S} handed {T} to {R}" + tail,
            kind="give", S=person, T=thing, R=receiver, why=why,
            not_R=self.rng.choice([p for p in self.cast.people if p not in (person, receiver)]),
        )  # fmt: skip
        self.holder[thing] = receiver
        self.spot.pop(thing, None)

    def lose(self, person: Person, thing: Thing, finder: Person, place: str) -> None:
        """`person` loses `thing`, `finder` finds it at `place` and brings it back."""
        self.narrator.say("One day {S} could not find {T}.", "Then {S} noticed that {T} was missing.", kind="miss", S=person, T=thing)
        self.narrator.say(
            "{F} found {T.it} near {place} and brought it back.",
            "At last {F} came across {T.it} outside {place} and returned it.",
            kind="find", F=finder, T=thing, place=place, S=person,
            not_F=self.rng.choice([p for p in self.cast.people if p not in (finder, person)]),
        )  # fmt: skip
        self.spot.pop(thing, None)

    def paint(self, person: Person, thing: Thing) -> None:
        color = self._other([c for c in names.COLOURS if c != "golden"], thing.adjective)
        self.narrator.say(
            "{S} painted {T} {color}.", "With an old brush {S} painted {T} {color}.",
            kind="paint", S=person, T=thing, color=color, not_color=self._other(names.COLOURS, color),
        )  # fmt: skip

    # --- counting -----------------------------------------------------------------------------------------------

    def gather(self, person: Person, helper: Person | None) -> tuple[str, int]:
        """`person` (and `helper`) gather goods; returns their kind and the number that `person` has."""
        goods, count = self._goods.pop(), self.rng.randrange(8, 25)
        verb = self.rng.choice(("gathered", "packed", "counted", "collected"))
        self.narrator.say(
            "{S} {verb} {count} {goods}.", "That week {S} {verb} {count} {goods}.",
            kind="gather", S=person, verb=verb, count=NUMBERS[count], goods=goods,
        )  # fmt: skip
        if helper:
            more = self.rng.randrange(2, 31 - count if count < 29 else 3)
            fact = self.narrator.say("{S} {verb} {more} more.", "{S} {verb} another {more}.", S=helper, verb=verb,
                                     more=NUMBERS[more])  # fmt: skip
            count += more
            roles: dict[str, Value] = {"S": person, "Q": helper, "goods": goods, "verb": verb, "more": NUMBERS[more]}
            self._derive("together", fact, {"more": fact.spans["more"]}, **roles, count=NUMBERS[count])
        return goods, count

    def share_out(self, person: Person, receiver: Person | None, goods: str, count: int) -> None:
        """Some of the goods go to `receiver`, or are spoilt; what is left follows from the state."""
        part = self.rng.randrange(2, count - 1)
        if receiver:
            fact = self.narrator.say(
                "{S} sold {part} of the {goods} to {R}.",
                kind="share", S=person, R=receiver, part=NUMBERS[part], goods=goods,
            )  # fmt: skip
        else:
            fact = self.narrator.say(
                "By noon {part} of the {goods} had been stolen.", "Sadly, {part} of the {goods} fell into the river.",
                "In the night {part} of the {goods} disappeared.", kind="spoil", part=NUMBERS[part], goods=goods, S=person,
            )  # fmt: skip
        self._derive("left", fact, {}, S=person, goods=goods, count=NUMBERS[count - part])

    # --- the final state ----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Facts about the end of the story that no single sentence states."""
        for thing, facts in self.puts.items():
            if thing in self.spot:
                last = self.spot[thing]
                once = [fact.value("S") for fact in facts].count(last.value("S")) == 1
                self._derive_spot("spot" if once else "last_spot", last)
            if len(facts) > 1:
                self._derive_spot("first_spot", facts[0])
        for thing, person in self.holder.items():
            given = [f for f in self.narrator.facts if f.kind in ("give", "buy") and f.value("T") == thing]
            if given:
                fact = given[-1]
                role = next(role for role in ("R", "S") if fact.value(role) == person)
                self._derive("holder", fact, {"S": fact.spans[role]} if role in fact.spans else {}, T=thing, S=person)

    def _derive_spot(self, kind: str, put: Fact) -> None:
        roles = {role: put.value(role) for role in ("S", "T", "spot")}
        self._derive(kind, put, {"spot": put.spans["spot"]}, **roles)

    def _derive(self, kind: str, evidence: Fact, spans: dict[str, Span], **roles: Value) -> None:
        self.narrator.facts.append(Fact(kind, dict(roles), spans, evidence.sentence))

    def _other(self, values: list[str], value: str | None) -> str:
        return self.rng.choice([v for v in values if v != value])
