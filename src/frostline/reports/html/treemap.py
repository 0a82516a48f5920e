"""Dotted names as nested rectangles with areas of their bytes (Bruls et al., Squarified treemaps, 2000)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 960, 400
_HEADER, _GAP = 18, 2
_MIN_WIDTH, _MIN_HEIGHT = 90, 56
_NUM_HEADINGS = 2
_LETTER_WIDTH = 6.6
_NUM_COLOURS = 6
Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A rectangle: `x` and `width` in percent of the drawing, for it is as wide as the page; the rest in pixels.

    Attributes:
        label: What fits into it.
        name: All of the name.
        num_bytes: Its area.
        style: CSS classes.
        is_group: Whether others lie inside.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    name: str
    num_bytes: int
    style: str
    is_group: bool


def treemap(places: dict[str, int], num_tiles: int) -> list[Tile]:
    """Rectangles for the largest places, groups before what lies inside; the other places share one.

    Args:
        places: Bytes by dotted name.
        num_tiles: How many places have their own.
    """
    ordered = sorted(((name, size) for name, size in places.items() if size > 0), key=lambda item: -item[1])
    shown, rest = dict(ordered[:num_tiles]), ordered[num_tiles:]
    if rest:
        shown[f"{len(rest)} others"] = sum(size for _, size in rest)
    groups = _grouped(shown, 0)
    modules = [name for name, members in groups.items() if any("." in member for member in members)]
    colours = {name: f"t{at % _NUM_COLOURS}" for at, name in enumerate(modules)}
    tiles: list[Tile] = []
    for (name, members), box in _laid_out(groups, (0.0, 0.0, WIDTH, HEIGHT)):
        tiles += _nested(name, members, box, colours.get(name, "t-none"), [])
    return tiles


def _grouped(places: dict[str, int], depth: int) -> dict[str, dict[str, int]]:
    """Places by the part of their names at a depth, the largest group first."""
    groups: dict[str, dict[str, int]] = {}
    for name, size in places.items():
        groups.setdefault(".".join(name.split(".")[: depth + 1]), {})[name] = size
    return dict(sorted(groups.items(), key=lambda item: -sum(item[1].values())))


def _nested(name: str, members: dict[str, int], box: Box, style: str, said: list[str]) -> Iterator[Tile]:
    """A group's heading and what lies below it; a group too small for a heading is one tile.

    Args:
        name: What the group's names begin with.
        members: Bytes by full name.
        box: Where it lies.
        style: Its colour.
        said: The headings around it.
    """
    x, y, width, height = box
    total = sum(members.values())
    if len(members) == 1:
        yield _tile(box, next(iter(members)), total, style, said)
        return
    if width < _MIN_WIDTH or height < _MIN_HEIGHT:
        yield _tile(box, f"{name} ({len(members)})", total, style, said)
        return
    depth = name.count(".") + 1
    groups = _grouped(members, depth)
    while len(groups) == 1:  # an only child's name joins the heading
        name, depth = next(iter(groups)), depth + 1
        groups = _grouped(members, depth)
    yield _tile(box, name, total, style, said, is_group=True)
    inner = (x + _GAP, y + _HEADER, width - 2 * _GAP, height - _HEADER - _GAP)
    if len(said) + 1 == _NUM_HEADINGS:  # deeper headings would leave no room for what they head
        groups = {member: {member: size} for member, size in members.items()}
    for (part, parts), place in _laid_out(groups, inner):
        yield from _nested(part, parts, place, style, [*said, name])


def _tile(box: Box, name: str, num_bytes: int, style: str, said: list[str], *, is_group: bool = False) -> Tile:
    x, y, width, height = box
    return Tile(
        x=round(100 * x / WIDTH, 2),
        y=round(y, 1),
        width=round(100 * max(0.5, width - _GAP / 2) / WIDTH, 2),
        height=round(max(0.5, height - _GAP / 2), 1),
        label=_label(name, said, width),
        name=name,
        num_bytes=num_bytes,
        style=style,
        is_group=is_group,
    )


def _label(name: str, said: list[str], width: float) -> str:
    """What the headings have not said yet; its end where there is no room for more."""
    label = (name.removeprefix(said[-1]).removeprefix(".") or "itself") if said else name
    return label if len(label) * _LETTER_WIDTH <= width or "." not in label else f"…{label.rpartition('.')[2]}"


def _laid_out(groups: dict[str, dict[str, int]], box: Box) -> Iterator[tuple[tuple[str, dict[str, int]], Box]]:
    sizes = [sum(members.values()) for members in groups.values()]
    yield from zip(groups.items(), squarify(sizes, box), strict=True)


def squarify(sizes: Sequence[float], box: Box) -> list[Box]:
    """Boxes with areas in the proportion of `sizes`, positive and falling, as near to squares as they come."""
    x, y, width, height = box
    boxes: list[Box] = []
    rest = list(sizes)
    while rest:
        scale = width * height / sum(rest)
        side = min(width, height)
        count = 1
        while count < len(rest) and _worst(rest[: count + 1], side, scale) <= _worst(rest[:count], side, scale):
            count += 1
        row, rest = rest[:count], rest[count:]
        depth = sum(row) * scale / side if side else 0.0
        at = 0.0
        for size in row:
            length = side * size / sum(row)
            boxes.append((x + at, y, length, depth) if width < height else (x, y + at, depth, length))
            at += length
        if width < height:
            y, height = y + depth, height - depth
        else:
            x, width = x + depth, width - depth
    return boxes


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """The largest ratio of sides in a row."""
    area = sum(row) * scale
    if not area or not side:
        return float("inf")
    return max(side**2 * max(row) * scale / area**2, area**2 / (side**2 * min(row) * scale))
