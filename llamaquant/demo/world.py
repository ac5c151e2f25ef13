"""Seeded CoQA-like dialogues from a small simulated world.

A story is a plot: a sequence of events (events.py) over a cast (names.py) that changes the world's state while it is
told (grammar.py). Questions (questions.py) are answered from that state, never from the text, and the text says
everything that an answer needs. Splits differ in their seeds and share no pair of person and thing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal, get_args

from llamaquant.demo.events import Scene
from llamaquant.demo.names import draw_cast
from llamaquant.demo.questions import Interview, Turn
from llamaquant.errors import ConfigError

Split = Literal["train", "calibration", "evaluation", "confirmation"]
SPLITS: tuple[str, ...] = get_args(Split)
MIN_WORDS, MAX_WORDS = 60, 200
MIN_TURNS, MAX_TURNS = 6, 12


def generate_stories(split: str, count: int, seed: int = 0, start: int = 0) -> list[dict[str, Any]]:
    """Stories `start` .. `start + count - 1` of a split, in the layout of the official CoQA JSON (one dict per story).

    Story i depends on (split, seed, i) alone, so a smaller count gives the beginning of a larger one.
    Raises ConfigError for an unknown split or a negative number.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got {split!r}: name one of them")
    if count < 0 or start < 0:
        raise ConfigError(f"count and start must not be negative, got count={count}, start={start}: ask for 0 or more")
    return [generate_story(split, seed, index) for index in range(start, start + count)]


def generate_story(split: str, seed: int, index: int) -> dict[str, Any]:
    """One story; attempts that miss the limits on words or turns are thrown away."""
    rng = random.Random(f"llamaquant-demo/{split}/{seed}/{index}")
    while True:
        scene = Scene(draw_cast(split, rng), rng)
        rng.choice(PLOTS)(scene)
        scene.close()
        turns = Interview(scene.narrator, rng).run(rng.randint(MIN_TURNS, MAX_TURNS))
        text = scene.narrator.text
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS and len(turns) >= MIN_TURNS:
            return _official_layout(f"demo-{split}-{seed}-{index:06d}", text, turns)


def _official_layout(story_id: str, text: str, turns: list[Turn]) -> dict[str, Any]:
    def answer(turn: Turn, number: int, words: str) -> dict[str, Any]:
        span = turn.span
        return {
            "span_start": span.start if span else -1,
            "span_end": span.end if span else -1,
            "span_text": text[span.start : span.end] if span else "unknown",
            "input_text": words,
            "turn_id": number,
        }

    numbered = list(enumerate(turns, start=1))
    return {
        "source": "demo",
        "id": story_id,
        "filename": f"{story_id}.txt",
        "name": "demo",
        "story": text,
        "questions": [{"input_text": turn.question, "turn_id": number} for number, turn in numbered],
        "answers": [answer(turn, number, turn.answer) for number, turn in numbered],
        "additional_answers": {str(k): [answer(turn, number, turn.references[k]) for number, turn in numbered] for k in range(3)},
    }


def _opening(scene: Scene, relate: bool = True) -> None:
    """Main person, perhaps a pet, and the person who matters to them."""
    main, other = scene.cast.people[:2]
    scene.introduce(main, scene.cast.places[0])
    if scene.rng.random() < 0.35:
        scene.keep_pet(main)
    if relate:
        scene.relate(main, other)


def _market(scene: Scene) -> None:
    """A journey to buy something, which is later given away."""
    (main, other, seller, _), (thing, second, *_) = scene.cast.people, scene.cast.things
    _opening(scene)
    scene.travel(main, scene.cast.places[1])
    _maybe(scene, scene.weather)
    scene.buy(main, thing, seller if scene.rng.random() < 0.6 else None)
    _maybe(scene, lambda: scene.refuse(main, second), 0.6)
    if scene.rng.random() < 0.5:
        _goods(scene, main, seller)
    scene.put(main, thing)
    if scene.rng.random() < 0.6:
        scene.give(main, thing, other)
    else:
        scene.put(other, thing, moved=True)
    _maybe(scene, lambda: scene.feel(scene.rng.choice((main, other))))


def _lost(scene: Scene) -> None:
    """A treasured thing is lost and found; the finder gets a share of something."""
    (main, other, finder, _), (thing, second, *_) = scene.cast.people, scene.cast.things
    _opening(scene)
    scene.own(main, thing)
    _maybe(scene, lambda: scene.put(main, thing))
    scene.travel(other, scene.cast.places[1])
    _maybe(scene, lambda: scene.meet(other, finder, second), 0.4)
    scene.lose(main, thing, finder, scene.cast.places[2])
    _maybe(scene, lambda: scene.paint(main, thing), 0.3)
    scene.put(main, thing)
    _goods(scene, main, finder)
    _maybe(scene, lambda: scene.put(other, thing, moved=True))
    _maybe(scene, lambda: scene.feel(main))


def _workshop(scene: Scene) -> None:
    """Somebody paints a thing, counts the stock and makes a present."""
    (main, other, third, _), (thing, second, *_) = scene.cast.people, scene.cast.things
    _opening(scene)
    _maybe(scene, scene.weather)
    scene.own(other, thing)
    scene.paint(main, thing)
    scene.put(main, thing)
    scene.put(other, thing, moved=True)
    _goods(scene, other, third)
    scene.own(main, second)
    scene.give(main, second, third)
    _maybe(scene, lambda: scene.feel(third))


def _errand(scene: Scene) -> None:
    """A delivery with a delay and a meeting on the way."""
    (main, other, met, _), (thing, second, *_) = scene.cast.people, scene.cast.things
    _opening(scene)
    scene.own(main, thing)
    scene.travel(main, scene.cast.places[1])
    _maybe(scene, lambda: scene.meet(main, met, second), 0.7)
    scene.delay(main)
    scene.give(main, thing, other)
    if scene.rng.random() < 0.7:
        scene.put(other, thing)
    if scene.rng.random() < 0.5:
        _goods(scene, other, main)
    else:
        scene.stay(main)
    _maybe(scene, lambda: scene.feel(other))


def _harvest(scene: Scene) -> None:
    """Two people gather goods, share them out, and trade things."""
    (main, other, third, _), (thing, second, *_) = scene.cast.people, scene.cast.things
    _opening(scene)
    _maybe(scene, scene.weather, 0.7)
    _goods(scene, main, third, helper=other)
    scene.travel(other, scene.cast.places[1])
    scene.buy(other, thing, third if scene.rng.random() < 0.5 else None)
    scene.put(other, thing)
    _maybe(scene, lambda: scene.put(main, thing, moved=True))
    scene.meet(other, scene.cast.people[3], second)
    _maybe(scene, lambda: scene.feel(main))


def _visit(scene: Scene) -> None:
    """A stay away from home, with a present and a purchase."""
    (main, host, third, _), (gift, bought, *_) = scene.cast.people, scene.cast.things
    _opening(scene)
    scene.travel(main, scene.cast.places[1])
    _maybe(scene, lambda: scene.delay(main))
    scene.stay(main)
    _maybe(scene, scene.weather)
    scene.buy(main, bought, third if scene.rng.random() < 0.6 else None)
    scene.own(host, gift)
    scene.give(host, gift, main)
    scene.put(main, gift)
    _maybe(scene, lambda: scene.put(main, bought), 0.6)
    if scene.rng.random() < 0.5:
        _goods(scene, host, third)
    _maybe(scene, lambda: scene.feel(main))


def _goods(scene: Scene, person: Any, receiver: Any, helper: Any = None) -> None:
    """Gather goods and lose some of them: to a person or to chance."""
    goods, count = scene.gather(person, helper)
    scene.share_out(person, receiver if scene.rng.random() < 0.65 else None, goods, count)


def _maybe(scene: Scene, event: Callable[[], None], chance: float = 0.5) -> None:
    if scene.rng.random() < chance:
        event()


PLOTS: tuple[Callable[[Scene], None], ...] = (_market, _lost, _workshop, _errand, _harvest, _visit)
