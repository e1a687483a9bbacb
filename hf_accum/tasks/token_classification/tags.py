"""Tags of words: the schemes that data comes in, and the entities that they tell; inside, all tags are IOB2."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

Tags = tuple[str, ...]
OUTSIDE = "O"
UNNAMED = "entity"
"""The type of tags that name none (B, I, O)."""
# Of the schemes' letters, what each does: L and E end an entity, U, S and W are a whole one, M goes on as I does.
_PLACES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_BEGINS_BY_I, _BEGINS_BY_B = "I first", "B first"


@dataclass(frozen=True)
class Entity:
    """The words of a text from `first` up to `last`, and what they name."""

    first: int
    last: int
    type: str


def split_tag(tag: str) -> tuple[str, str] | None:
    """A tag's place in an entity (B, I, E, S) and its type, both "O" and "" outside; None: it is no tag."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    place, hyphen, name = tag.partition("-")
    if place not in _PLACES or (hyphen and not name):
        return None
    return _PLACES[place], name or UNNAMED


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of a text, by its tags in any of the schemes IOB1, IOB2, IOBES, BILOU and BMEWO.

    As conlleval reads them: one begins at B and S, after E and S, and where the type is another than before.

    Raises:
        AssertionError: for what `split_tag` does not take.
    """
    found: list[Entity] = []
    first, type_before, is_ended = 0, "", True
    for index, tag in enumerate((*tags, OUTSIDE)):
        split = split_tag(tag)
        assert split is not None, tag
        place, name = split
        if place in "OBS" or is_ended or name != type_before:
            if type_before:
                found.append(Entity(first, index, type_before))
            first = index
        type_before, is_ended = name, place in "OES"
    return found


def tags_of(entities: Iterable[Entity], num_words: int) -> Tags:
    """Tags in the scheme IOB2 of entities that do not overlap."""
    tags = [OUTSIDE] * num_words
    for entity in entities:
        tags[entity.first : entity.last] = [f"I-{entity.type}"] * (entity.last - entity.first)
        tags[entity.first] = f"B-{entity.type}"
    return tuple(tags)


def longest_of(entities: Iterable[Entity]) -> list[Entity]:
    """Those of which none overlaps another, the longest first kept (then the earlier one), in their order."""
    kept: list[Entity] = []
    taken: set[int] = set()
    for entity in sorted(entities, key=lambda one: (one.first - one.last, one.first, one.type)):
        words = range(entity.first, entity.last)
        if taken.isdisjoint(words):
            taken.update(words)
            kept.append(entity)
    return sorted(kept, key=lambda one: one.first)


def signs_of_scheme(tags: Sequence[str]) -> set[str]:
    """What of a text's tags tells their scheme: the letters, and by which of them entities begin that need no B."""
    signs: set[str] = set()
    before = ""
    for tag in tags:
        letter, name = tag[:1], tag[1:]
        signs.add(letter)
        if letter in "BI" and name != before:
            signs.add(_BEGINS_BY_B if letter == "B" else _BEGINS_BY_I)
        before = "" if letter == OUTSIDE else name
    return signs


def scheme_of(signs: Set[str]) -> str:
    """The scheme that all the signs of some texts tell."""
    if signs & {"L", "U"}:
        return "BILOU"
    if signs & {"M", "W"}:
        return "BMEWO"
    if signs & {"E", "S"}:
        return "IOBES"
    if _BEGINS_BY_I not in signs:
        return "IOB2"
    return "IOB1" if _BEGINS_BY_B not in signs else "IOB1 and IOB2, mixed"


def labels_of(types: Sequence[str], *, in_layers: bool = False) -> Tags:
    """A model's labels for entity types: O first, then B and I of each; `in_layers`, three of each: O, B and I."""
    if in_layers:
        return tuple(f"{place}-{name}" for name in types for place in "OBI")
    return (OUTSIDE, *(f"{place}-{name}" for name in types for place in "BI"))


def types_of(tags: Iterable[str]) -> tuple[str, ...]:
    """The entity types among tags, sorted."""
    return tuple(sorted({split[1] for tag in tags if (split := split_tag(tag)) and split[1]}))
