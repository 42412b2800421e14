"""The grammar of the captions of drawn scenes: a thing, its motion, its speed.

The caption of a clip played backwards is the same sentence with opposite directions. So time reversal is an exact
augmentation of the data, and the loss with the reversed caption shows whether a model has learned the direction.
"""

from __future__ import annotations

COLOURS = {
    "red": (0.86, 0.12, 0.14), "green": (0.13, 0.66, 0.22), "blue": (0.13, 0.27, 0.88), "yellow": (0.96, 0.86, 0.13),
    "orange": (0.96, 0.53, 0.08), "purple": (0.52, 0.16, 0.70), "pink": (0.97, 0.50, 0.70), "cyan": (0.14, 0.80, 0.86),
    "white": (0.96, 0.96, 0.96), "black": (0.06, 0.06, 0.07),
}  # fmt: skip
SHAPES = ("disc", "square", "triangle", "star", "ring", "cross", "diamond", "heart", "ball", "egg")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = SHAPES + DIGITS

DIRECTIONS = ("left", "right", "up", "down")
CAMERA_VERBS = {
    "left": "pan", "right": "pan", "up": "tilt", "down": "tilt", "in": "zoom", "out": "zoom",
    "clockwise": "roll", "counterclockwise": "roll",
}  # fmt: skip
MOTIONS = (*CAMERA_VERBS, "still")
SPEEDS = ("slowly", "", "quickly")

_OPPOSITES = {"left": "right", "up": "down", "in": "out", "clockwise": "counterclockwise"}
_OPPOSITES |= {b: a for a, b in _OPPOSITES.items()}


def reverse(caption: str) -> str:
    """The caption of the clip played backwards: every direction is replaced by its opposite."""
    return " ".join(_OPPOSITES.get(word, word) for word in caption.split())


def thing_caption(colour: str, thing: str, motion: str, speed: str, style: int = 0) -> str:
    """A clause about a thing. `style` selects the wording; 0 is the basic one."""
    a = "an" if colour == "orange" else "a"
    if motion == "still":
        return (f"{a} {colour} {thing} stays still", f"the {colour} {thing} does not move")[style % 2]
    return _join(
        (f"{a} {colour} {thing} moves {motion}", speed),
        (f"the {colour} {thing} moves", speed, f"to the {motion}" if motion in ("left", "right") else motion),
        (f"{a} {colour} {thing}", speed, f"moves {motion}"),
    )[style % 3]


def camera_caption(motion: str, speed: str = "", style: int = 0) -> str:
    """A sentence about the camera, with `style` as in thing_caption. "pan left" means that the camera turns left: the
    content of the picture moves right."""
    if motion == "still":
        return ("the camera stays still", "nothing moves")[style % 2]
    verb = CAMERA_VERBS[motion]
    return _join(
        (f"the camera {verb}s {motion}", speed), (f"{verb} {motion}", speed), ("the camera", speed, f"{verb}s {motion}")
    )[style % 3]  # fmt: skip


def _join(*sentences: tuple[str, ...]) -> list[str]:
    return [" ".join(part for part in sentence if part) for sentence in sentences]


def all_words() -> list[str]:
    """All words of the grammar, sorted: the vocabulary of the demo models."""
    captions = [
        thing_caption(colour, thing, motion, speed, style) + " and " + camera_caption(camera, speed, style)
        for colour, thing in [(c, "ball") for c in COLOURS] + [("red", t) for t in THINGS]
        for motion in (*DIRECTIONS, "still")
        for camera in MOTIONS
        for speed in SPEEDS
        for style in range(6)
    ]
    return sorted({word for caption in captions for word in caption.split()})
