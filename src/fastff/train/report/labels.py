"""Names beside points of a plot, placed so that they cover neither each other nor points."""

from dataclasses import dataclass

from matplotlib.axes import Axes

Point = tuple[float, float]
Box = tuple[float, float, float, float]

SIZE = 7.5
_CHARACTER = 0.58 * SIZE  # points; width of a mean character
_STEPS = (0, 10, -10, 20, -20, 31, -31, 42, -42, 54, -54, 66, -66, 80, -80, 95, -95)


@dataclass(frozen=True)
class Place:
    """A label, its point in data coordinates, its offset in points, and whether it is near and covers nothing."""

    label: str
    point: Point
    dx: float
    dy: float
    good: bool


def find_places(ax: Axes, points: list[Point], labels: list[str], avoid: list[Point]) -> list[Place]:
    """A place for each of `labels` beside its point, near it where there is room.

    Args:
        ax: its limits, scales and layout are final.
        points, labels: one label per point (data coordinates).
        avoid: further points to keep clear of.
    """
    scale = 72 / ax.figure.dpi

    def position(point: Point) -> Point:
        x, y = ax.transData.transform(point)
        return x * scale, y * scale

    frame = ax.get_window_extent()
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    taken = [_around(*position(point)) for point in (*points, *avoid)]
    places = []
    for point, label in sorted(zip(points, labels, strict=True)):
        clashes, dx, dy, box = _free_place(*position(point), len(label) * _CHARACTER, inside, taken)
        taken.append(box)
        places.append(Place(label, point, dx, dy, clashes == 0 and abs(dy) <= 20))
    return places


def write_labels(ax: Axes, places: list[Place]) -> None:
    """Write the labels, far ones with a line to their point."""
    for place in places:
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        ax.annotate(
            place.label,
            place.point,
            xytext=(place.dx, place.dy),
            textcoords="offset points",
            ha="left" if place.dx > 0 else "right",
            va="center",
            fontsize=SIZE,
            color="#222222",
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.6},  # lines pass below it
            arrowprops=line if abs(place.dy) > 12 else None,
        )


def _around(x: float, y: float) -> Box:
    return x - 4, y - 4, x + 4, y + 4


def _free_place(x: float, y: float, width: float, inside: Box, taken: list[Box]) -> tuple[int, float, float, Box]:
    """Clashes, offset and box of the nearest place without clashes; of the one with the fewest if all have some."""
    best: tuple[int, float, float, Box] | None = None
    for dy in _STEPS:
        for dx in (7.0, -7.0) if abs(dy) < 12 else (12.0, -12.0):
            left = x + dx if dx > 0 else x + dx - width
            box = (left, y + dy - SIZE * 0.6, left + width, y + dy + SIZE * 0.6)
            within = box[0] >= inside[0] and box[2] <= inside[2] and box[1] >= inside[1] and box[3] <= inside[3]
            clashes = sum(_overlap(box, other) for other in taken) + (0 if within else 3)
            if best is None or clashes < best[0]:
                best = (clashes, dx, dy, box)
            if clashes == 0:
                return best
    assert best is not None
    return best


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
