"""From events to English: sentences with recorded spans, references by name or pronoun, wording of answers."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass, field

from llamaquant.demo.names import MATERIALS, Person, Thing, article

Value = Person | Thing | str | None
LINKS = ("Then", "Soon", "After that,", "A little later", "Not long afterwards", "In the meantime,", "Before noon")
LINKED = {"put", "paint", "give", "gather", "share", "feel", "meet", "buy"}


@dataclass(frozen=True)
class Span:
    """Half-open range of characters in the story text."""

    start: int
    end: int


@dataclass(frozen=True)
class Fact:
    """What one event (or the final state) makes true.

    `roles` holds the values by role; None stands for something that the story leaves open. `spans` says where a role
    is named; `sentence` is the evidence for answers that are not in the text.
    """

    kind: str
    roles: dict[str, Value]
    spans: dict[str, Span]
    sentence: Span

    def value(self, role: str) -> Value:
        return self.roles.get(role)


@dataclass
class Narrator:
    """Writes the story sentence by sentence and remembers who and what was mentioned last."""

    rng: random.Random
    text: str = ""
    facts: list[Fact] = field(default_factory=list)
    named: dict[Person | Thing | str, Span] = field(default_factory=dict)
    _subject: Person | None = None
    _others: frozenset[str] = frozenset()
    _thing: Thing | None = None

    def say(self, *templates: str, kind: str | None = None, **roles: Value) -> Fact:
        """Write one of the templates as the next sentence; with `kind`, remember it as a fact.

        `{S}` is the subject (a pronoun where that is unambiguous), `{X.pos}` and `{X.sub}` are pronouns, things get
        their article, other roles appear as they are.
        """
        template = self.rng.choice(templates)
        if kind in LINKED and template.startswith("{S}") and self.rng.random() < 0.3:
            template = f"{self.rng.choice(LINKS)} {template}"
        start = len(self.text) + (1 if self.text else 0)
        spans: dict[str, Span] = {}
        sentence = ""
        for literal, name, _, _ in string.Formatter().parse(template):
            sentence += literal
            if name:
                surface, offset = self._mention(name, roles, first=not sentence)
                begin = start + len(sentence) + offset
                sentence += surface
                if offset >= 0 and "." not in name:
                    spans[name] = Span(begin, start + len(sentence))
                    self._remember(roles[name], spans[name])
        sentence = sentence[0].upper() + sentence[1:]
        self.text += (" " if self.text else "") + sentence
        self._update_focus(template, roles)
        for role, value in roles.items():
            if value in self.named and (role in ("place", "home") or not isinstance(value, str)):
                spans.setdefault(role, self.named[value])
        fact = Fact(kind or "", dict(roles), spans, Span(start, len(self.text)))
        if kind:
            self.facts.append(fact)
        return fact

    def _mention(self, name: str, roles: dict[str, Value], first: bool) -> tuple[str, int]:
        """Surface text of a role, and how far its span starts into it (-1: a pronoun or short form, no span)."""
        role, _, form = name.partition(".")
        value = roles[role]
        if isinstance(value, Person):
            if form:
                return str(getattr(value, form)), -1
            if role == "S" and value == self._subject and value.gender not in self._others and self.rng.random() < 0.8:
                return value.sub, -1
            return value.name, 0
        if isinstance(value, Thing):
            return self._mention_thing(value, form)
        return str(value), 0

    def _mention_thing(self, thing: Thing, form: str) -> tuple[str, int]:
        if form == "it" and thing == self._thing:
            return "it", -1
        if thing not in self.named:
            surface = article(thing.phrase)
            return surface, surface.index(" ") + 1
        if self.rng.random() < 0.4:
            return f"the {thing.noun}", -1
        return f"the {thing.phrase}", 4

    def _remember(self, value: Value, span: Span) -> None:
        if value is not None:
            self.named.setdefault(value, span)

    def _update_focus(self, template: str, roles: dict[str, Value]) -> None:
        subject = roles.get("S")
        self._subject = subject if isinstance(subject, Person) and "{S" in template else None
        people = [v for role, v in roles.items() if isinstance(v, Person) and role != "S" and f"{{{role}" in template]
        self._others = frozenset(person.gender for person in people)
        things = [v for role, v in roles.items() if isinstance(v, Thing) and f"{{{role}" in template]
        self._thing = things[0] if len(things) == 1 else None


@dataclass(frozen=True)
class Focus:
    """Whom and what the last question and answer spoke of: what a pronoun in the next question can mean."""

    people: tuple[Person, ...] = ()
    things: tuple[Thing, ...] = ()

    def pronoun_for(self, value: Person | Thing) -> bool:
        """Whether exactly one candidate for the pronoun of `value` is in focus, and it is `value`."""
        if isinstance(value, Thing):
            return self.things == (value,)
        return [p for p in self.people if p.gender == value.gender] == [value]


@dataclass(frozen=True)
class Question:
    """A rendered question and whom and what it mentions."""

    text: str
    mentioned: tuple[Person | Thing, ...]


def render_question(template: str, roles: dict[str, Value], focus: Focus, rng: random.Random) -> Question:
    """Fill a question: `{S}` and `{S.o}` are a name or she/her, `{S.p}` a possessive, `{T}` a thing or "it"."""
    parts: list[str] = []
    mentioned: dict[Person | Thing, None] = {}
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if not name:
            continue
        role, _, form = name.partition(".")
        value = roles[role]
        if isinstance(value, Person | Thing):
            pronoun = value in mentioned or (focus.pronoun_for(value) and rng.random() < 0.8)
            parts.append(_reference(value, form, pronoun, rng))
            mentioned.setdefault(value)
        else:
            parts.append(str(value))
    text = "".join(parts)
    return Question(text[0].upper() + text[1:], tuple(mentioned))


def _reference(value: Person | Thing, form: str, pronoun: bool, rng: random.Random) -> str:
    if isinstance(value, Thing):
        if form == "a":
            return article(value.phrase)
        return "it" if pronoun else f"the {value.noun if rng.random() < 0.4 else value.phrase}"
    if form == "p":
        return value.pos if pronoun else f"{value.name}'s"
    if form == "o":
        return value.obj if pronoun else value.name
    return value.sub if pronoun else value.name


def wordings(value: Value, style: str, asked: Person | None) -> list[str]:
    """Ways in which people would word one answer; the first is the plain one."""
    if value is None:
        return ["unknown", "unknown", "Unknown"]
    if isinstance(value, Person):
        return [value.name, value.name, f"{value.name}."]
    if isinstance(value, Thing):
        kind = "" if value.adjective in MATERIALS else " one"
        short = f"the {value.adjective}{kind}" if kind else value.noun
        return [article(value.phrase), value.phrase, f"the {value.phrase}", f"{article(value.phrase)}.", short]
    if style in ("yes", "no"):
        capital = style.capitalize()
        return [style, capital, f"{capital}."]
    if style == "because":
        return [value, f"because {value}", f"{value[0].upper()}{value[1:]}.", f"Because {value}."]
    if style == "place":
        bare = value.removeprefix("the ")
        return [value, bare, f"at {value}", f"{value[0].upper()}{value[1:]}."]
    if style == "job":
        return [article(value), value, f"{asked.sub} was {article(value)}" if asked else value]
    if style == "mood":
        return [value, f"{value}.", value.capitalize()]
    if style == "coins":
        return [f"{value} coins", f"{value} coins", value, f"{value} coins."]
    return [value, value, f"{value[0].upper()}{value[1:]}", f"{value}."]
