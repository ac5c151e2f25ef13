"""Questions about the facts of a story, asked as a conversation: follow-ups, pronouns, yes/no and open questions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from llamaquant.demo.grammar import Fact, Focus, Narrator, Span, Value, render_question, wordings
from llamaquant.demo.names import Person, Thing

MAX_UNKNOWN = 2
"""Unanswerable turns per story at most."""


@dataclass(frozen=True)
class Ask:
    """One question about facts of a kind: its text, the role that answers it, how answers are worded, and the short
    form that follows a question on the same fact. With `swap`, a yes/no question: `{x}` stands for the role's value
    or for a false one (role `not_<swap>`)."""

    text: str
    role: str = ""
    style: str = "plain"
    short: str | None = None
    swap: str | None = None


@dataclass(frozen=True)
class Turn:
    """A question with its plain answer, its other wordings, and where the story shows it (None: nowhere)."""

    question: str
    answer: str
    references: tuple[str, ...]
    span: Span | None
    exact: bool
    fact: Fact
    ask: Ask


ASKS: dict[str, list[Ask]] = {
    "person": [
        Ask("What was {S.p} job?", "job", "job"),
        Ask("What did {S} do for a living?", "job", "job"),
        Ask("How old was {S}?", "age"),
        Ask("Where did {S} live?", "home", "place"),
        Ask("Was {S} {x}?", swap="job", style="a"),
    ],
    "relation": [
        Ask("Who was {S.p} {relation}?", "Q"),
        Ask("How was {Q} related to {S.o}?", "relation"),
        Ask("What was {Q.p} job?", "job", "job"),
        Ask("What did {Q} do for a living?", "job", "job"),
        Ask("Was {Q} {S.p} {x}?", swap="relation"),
    ],
    "pet": [
        Ask("What kind of animal did {S} have?", "animal", "job"),
        Ask("What was the {animal} called?", "pet", short="What was its name?"),
        Ask("What was the name of {S.p} pet?", "pet"),
        Ask("Who owned {pet}?", "S"),
        Ask("What colour was {pet}?", "color", short="What colour was it?"),
    ],
    "mood": [Ask("How did {S} feel in the end?", "mood", "mood"), Ask("Was {S} {x} in the end?", swap="mood")],
    "travel": [
        Ask("Where did {S} go?", "place", "place", "Where to?"),
        Ask("When did {S} go to {place}?", "when", short="When?"),
        Ask("How did {S} get to {place}?", "how", short="How did {S} get there?"),
        Ask("Why did {S} go to {place}?", "why", short="What for?"),
        Ask("Who went to {place}?", "S"),
        Ask("Did {S} travel {x}?", swap="how"),
        Ask("Did {S} go to {x}?", swap="place"),
    ],
    "weather": [Ask("What was the weather like?", "weather"), Ask("Was it a {x} day?", swap="weather")],
    "delay": [
        Ask("How many hours late was {S}?", "hours", short="How many hours?"),
        Ask("Why was {S} late?", "why", "because", "Why?"),
        Ask("Who was late?", "S"),
        Ask("Did {S} arrive on time?", "no"),
    ],
    "meet": [
        Ask("Who did {S} meet?", "Q", short="Who was it?"),
        Ask("What was {Q} carrying?", "T"),
        Ask("What was {Q.p} job?", "job", "job"),
        Ask("Who had {T.a}?", "Q"),
    ],
    "stay": [
        Ask("How many nights did {S} stay at {place}?", "nights", short="For how many nights?"),
        Ask("Where did {S} stay?", "place", "place"),
    ],
    "buy": [
        Ask("What did {S} buy?", "T"),
        Ask("Who bought {T}?", "S"),
        Ask("Who sold {T} to {S.o}?", "R", short="From whom?"),
        Ask("How much did {T} cost?", "price", "coins", "How much was it?"),
        Ask("How much did {S} pay for {T}?", "price", "coins", "For how much?"),
        Ask("Where did {S} buy {T}?", "place", "place", "Where?"),
        Ask("Did {S} buy {x}?", swap="T", style="a"),
    ],
    "refuse": [
        Ask("Did {S} take {T}?", "no"),
        Ask("Why did {S} not take {T}?", "why", "because", "Why not?"),
        Ask("What did {S} leave behind?", "T"),
    ],
    "own": [Ask("Who owned {T.a}?", "S")],
    "put": [Ask("Who put {T} {spot}?", "S"), Ask("What did {S} put {spot}?", "T")],
    "move": [Ask("Who moved {T}?", "S"), Ask("What was moved?", "T"), Ask("Was {T} moved?", "yes")],
    "first_spot": [Ask("Where was {T} at first?", "spot", short="And at first?")],
    "last_spot": [Ask("Where was {T} in the end?", "spot", short="And in the end?")],
    "spot": [
        Ask("Where was {T} in the end?", "spot", short="And in the end?"),
        Ask("Where did {S} put {T}?", "spot", short="Where?"),
    ],
    "give": [
        Ask("Who got {T}?", "R"),
        Ask("Who did {S} give {T} to?", "R", short="To whom?"),
        Ask("What did {R} get from {S.o}?", "T"),
        Ask("What did {S} give to {R.o}?", "T"),
        Ask("Why did {S} give {T} away?", "why", "because", "Why?"),
        Ask("Who gave {T} to {R.o}?", "S"),
        Ask("Did {S} give {T} to {x}?", swap="R"),
    ],
    "holder": [Ask("Who had {T} in the end?", "S"), Ask("Whose was {T} in the end?", "S")],
    "miss": [Ask("What was missing?", "T"), Ask("Who could not find {T}?", "S")],
    "find": [
        Ask("Who found {T}?", "F", short="Who found it?"),
        Ask("Where was {T} found?", "place", "place", "Where?"),
        Ask("Did {x} find {T}?", swap="F"),
        Ask("Was {T} ever found?", "yes"),
    ],
    "paint": [
        Ask("What colour did {S} paint {T}?", "color", short="What colour?"),
        Ask("Who painted {T}?", "S"),
        Ask("What was painted?", "T"),
        Ask("Was {T} {x} in the end?", swap="color"),
    ],
    "gather": [
        Ask("How many {goods} were there at first?", "count", short="How many at first?"),
        Ask("How many {goods} had {S} {verb}?", "count"),
    ],
    "together": [
        Ask("How many {goods} did they have together?", "count", short="How many together?"),
        Ask("How many more {goods} came from {Q.o}?", "more"),
    ],
    "share": [
        Ask("How many {goods} did {R} get?", "part", short="How many?"),
        Ask("Who got some of the {goods}?", "R"),
    ],
    "spoil": [Ask("How many {goods} were lost?", "part", short="How many?")],
    "left": [
        Ask("How many {goods} were left?", "count", short="How many were left?"),
        Ask("How many {goods} did {S} still have?", "count"),
    ],
}


class Interview:
    """Asks about the facts of one story; every question is asked once, and unknown answers stay rare."""

    def __init__(self, narrator: Narrator, rng: random.Random) -> None:
        self.narrator, self.rng = narrator, rng
        self.turns: list[Turn] = []
        self._focus = Focus()
        self._asked: set[tuple[str, str, Value]] = set()

    def run(self, count: int) -> list[Turn]:
        """Up to `count` turns: a walk over the facts, mostly in story order, with 1 to 3 questions on each."""
        facts = [fact for fact in self.narrator.facts if fact.kind in ASKS]
        facts.sort(key=lambda fact: fact.sentence.start + self.rng.gauss(0, 120))
        while len(self.turns) < count and facts:
            per_fact = self.rng.choice((1, 1, 2, 2, 3))
            for fact in list(facts):
                if self.rng.random() < 0.35:
                    continue
                facts.remove(fact)
                self._ask_about(fact, min(per_fact, count - len(self.turns)))
                if len(self.turns) >= count:
                    break
        return self.turns

    def _ask_about(self, fact: Fact, count: int) -> None:
        asks = self.rng.sample(ASKS[fact.kind], len(ASKS[fact.kind]))
        follows = False
        for ask in asks:
            if count == 0:
                return
            turn = self._render(fact, ask, follows)
            if turn is not None:
                self.turns.append(turn)
                follows, count = True, count - 1

    def _render(self, fact: Fact, ask: Ask, follows: bool) -> Turn | None:
        roles = dict(fact.roles)
        answer = self._truth(fact, ask, roles)
        if answer is None and self._unknowns() >= MAX_UNKNOWN:
            return None
        if ask.swap and roles.get("x") is None:
            return None
        answered = f"{fact.kind}/{ask.role or ask.swap}"
        key = (answered, str(fact.value("T") or fact.value("goods")), fact.value("Q") or fact.value("S"))
        if key in self._asked or _gives_away(ask, answer, self.turns[-1:] if follows else []):
            return None
        short = follows and ask.short is not None and self.rng.random() < 0.6
        question = render_question(ask.short if short and ask.short else ask.text, roles, self._focus, self.rng)
        if any(turn.question == question.text for turn in self.turns):
            return None
        self._asked.add(key)
        self._focus = _focus_after(question.mentioned, answer, self._focus if short else Focus())
        return self._turn(fact, ask, question.text, answer)

    def _truth(self, fact: Fact, ask: Ask, roles: dict[str, Value]) -> Value:
        """The answer from the state; a yes/no question draws the true or the false value for `{x}` first."""
        if ask.role in ("yes", "no"):
            return ask.role
        if not ask.swap:
            return fact.value(ask.role)
        true = self.rng.random() < 0.5
        value = fact.value(ask.swap if true else f"not_{ask.swap}")
        if fact.value(ask.swap) is None:
            value = None
        roles["x"] = f"a {value}" if isinstance(value, str) and ask.style == "a" else value
        if isinstance(value, str) and ask.style == "a" and value[0] in "aeiou":
            roles["x"] = f"an {value}"
        return "yes" if true else "no"

    def _unknowns(self) -> int:
        return sum(turn.answer == "unknown" for turn in self.turns)

    def _turn(self, fact: Fact, ask: Ask, question: str, answer: Value) -> Turn:
        style = answer if answer in ("yes", "no") and (ask.swap or ask.role == answer) else ask.style
        asked = fact.value("S") if fact.kind == "person" else fact.value("Q")
        worded = wordings(answer, str(style), asked if isinstance(asked, Person) else None)
        span = fact.sentence if answer is not None else None
        exact = ask.role in fact.spans and answer is not None
        if exact:
            span = fact.spans[ask.role]
        references = tuple(self.rng.choice((worded[0], *worded)) for _ in range(3))
        plain = worded[0] if self.rng.random() < 0.95 else self.rng.choice(worded[:3])
        return Turn(question, plain, references, span, exact, fact, ask)


def _gives_away(ask: Ask, answer: Value, last: list[Turn]) -> bool:
    """Whether the turn before (on the same fact) already said the answer: in its question or as its own answer."""
    if not last or ask.swap:
        return False
    if ask.role in ("yes", "no"):
        return True
    said = f"{last[0].question} {last[0].answer}"
    if isinstance(answer, Thing):
        return answer.noun in said
    return (answer.name if isinstance(answer, Person) else answer or "?!") in said


def _focus_after(mentioned: tuple[Person | Thing, ...], answer: Value, before: Focus) -> Focus:
    entities = [*mentioned, *([answer] if isinstance(answer, Person | Thing) else [])]
    people = tuple(dict.fromkeys(e for e in entities if isinstance(e, Person)))
    things = tuple(dict.fromkeys(e for e in entities if isinstance(e, Thing)))
    return Focus(people or before.people, things or before.things)
