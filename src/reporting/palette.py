"""Colours that colour-blind people can tell, each with a shape of its own, so that colour is never the only sign.

Source: Okabe and Ito, Color universal design, 2008; cividis: Nunez, Anderton and Renslow, Optimizing colormaps with
consideration for color vision deficiency, 2018.
"""

from dataclasses import dataclass

BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
PALE = "#B8BCC2"
GRID = "#E5E7EB"

# For things side by side; yellow is too faint for lines on white, black is for text.
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SEQUENTIAL = "cividis"


@dataclass(frozen=True)
class Mark:
    """How the points of one kind look.

    Attributes:
        colour: Of the fill, or of the edge where it is hollow.
        symbol: Plotly's name of the shape.
        marker: Matplotlib's name of the same shape.
        size: Diameter in pixels; points in static pictures are half of it.
        hollow: Only the edge is drawn.
    """

    colour: str
    symbol: str
    marker: str
    size: float
    hollow: bool = False


# By state of a trial; what is not listed looks like "no value".
STATES = {
    "front": Mark(BLUE, "circle", "o", 11),
    "dominated": Mark(PALE, "circle", "o", 8),
    "over limit": Mark(ORANGE, "square", "s", 7, hollow=True),
    "pruned": Mark(PURPLE, "triangle-down", "v", 7, hollow=True),
    "over_limit": Mark(VERMILLION, "square", "s", 6, hollow=True),
    "no value": Mark("#7A7F87", "x-thin", "x", 6, hollow=True),
}
KNEE = Mark(VERMILLION, "star", "*", 19)
ORIGIN = Mark("#3B3F45", "circle", "o", 9, hollow=True)
CHOSEN = Mark(BLACK, "diamond", "D", 17, hollow=True)
# Shapes for studies, parameters or chosen runs side by side: Plotly's names and matplotlib's.
SHAPES = (
    ("circle", "o"),
    ("diamond", "D"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("cross", "P"),
    ("hexagon", "h"),
)
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))


def mark(state: str) -> Mark:
    """How a trial in this state looks."""
    return STATES.get(state, STATES["no value"])


def cycle(position: int) -> str:
    """The colour of the thing at this position among things side by side."""
    return CYCLE[position % len(CYCLE)]
