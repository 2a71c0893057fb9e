"""Text on pictures: five by seven dots a letter, white on a dark plate, at whole scales."""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Ink = npt.NDArray[np.bool_]
Place = tuple[slice, slice]

_GLYPHS = {
    # 5 x 7 dots, a row each in hexadecimal pairs, highest of five bits on the left
    " ": "00000000000000", "0": "0E11131519110E", "1": "040C040404040E", "2": "0E11010204081F",
    "3": "1F02040201110E", "4": "02060A121F0202", "5": "1F101E0101110E", "6": "0608101E11110E",
    "7": "1F010204080808", "8": "0E11110E11110E", "9": "0E11110F01020C", "A": "0E11111F111111",
    "B": "1E11111E11111E", "C": "0E11101010110E", "D": "1C12111111121C", "E": "1F10101E10101F",
    "F": "1F10101E101010", "G": "0E11101711110F", "H": "1111111F111111", "I": "0E04040404040E",
    "J": "0702020202120C", "K": "11121418141211", "L": "1010101010101F", "M": "111B1515111111",
    "N": "11111915131111", "O": "0E11111111110E", "P": "1E11111E101010", "Q": "0E11111115120D",
    "R": "1E11111E141211", "S": "0F10100E01011E", "T": "1F040404040404", "U": "1111111111110E",
    "V": "11111111110A04", "W": "1111111515150A", "X": "11110A040A1111", "Y": "1111110A040404",
    "Z": "1F01020408101F", "-": "0000001F000000", ".": "00000000000C0C", ":": "000C0C000C0C00",
    "_": "0000000000001F", "/": "00010204081000", "%": "18190204081303", "?": "0E110102040004",
    ",": "00000000060204", "(": "02040808080402", ")": "08040202020408", "+": "0004041F040400",
    "#": "0A0A1F0A1F0A0A", "&": "0C12140815120D", "'": "0C040800000000", "=": "00001F001F0000",
    "a": "00000E010F110F", "b": "10101E1111111E", "c": "00000E1110110E", "d": "01010F1111110F",
    "e": "00000E111F100E", "f": "06081C08080808", "g": "000F11110F010E", "h": "10101619111111",
    "i": "04000C0404040E", "j": "0200060202120C", "k": "10101214181412", "l": "0C04040404040E",
    "m": "00001A15151515", "n": "00001619111111", "o": "00000E1111110E", "p": "001E11111E1010",
    "q": "000F11110F0101", "r": "00001619101010", "s": "00000F100E011E", "t": "08081C08080906",
    "u": "0000111111130D", "v": "00001111110A04", "w": "0000111115150A", "x": "0000110A040A11",
    "y": "001111110F010E", "z": "00001F0204081F",
}  # fmt: skip


def ink_of(text: str, scale: int) -> Ink:
    """Return a text as dots, with a margin.

    Accents are left off, signs that we cannot draw become '?'.

    Parameters
    ----------
    text : str
        One line.
    scale : int
        Picture px of a dot along a side.

    Returns
    -------
    ndarray
        (9 * scale, w) bool.

    Examples
    --------
    >>> ink_of("é", 1).shape == ink_of("e", 1).shape == (9, 9)
    True
    """
    dots = [np.zeros((7, 1), bool)]
    for letter in unicodedata.normalize("NFKD", text):
        if unicodedata.combining(letter):
            continue
        rows = bytes.fromhex(_GLYPHS.get(letter, _GLYPHS["?"]))
        glyph = np.unpackbits(np.frombuffer(rows, np.uint8)[:, None], axis=1)[:, 3:].astype(bool)
        dots += [glyph, np.zeros((7, 1), bool)]
    return np.pad(np.hstack(dots), 1).repeat(scale, axis=0).repeat(scale, axis=1)


def place_of(picture: Pixels, ink: Ink, centre: tuple[float, float]) -> Place:
    """Return where a text goes: around a point (x, y), but inside the picture."""
    height, width = picture.shape[:2]
    top = int(np.clip(centre[1] - ink.shape[0] / 2, 0, max(0, height - ink.shape[0])))
    left = int(np.clip(centre[0] - ink.shape[1] / 2, 0, max(0, width - ink.shape[1])))
    return slice(top, top + ink.shape[0]), slice(left, left + ink.shape[1])


def print_ink(picture: Pixels, ink: Ink, here: Place) -> None:
    """Darken a plate, in place, and write on it in white."""
    plate = picture[here]
    plate[:] = plate // 4
    plate[ink[: plate.shape[0], : plate.shape[1]]] = 255


def write_text(picture: Pixels, text: str, centre: tuple[float, float], scale: int) -> None:
    """Write on a dark plate, in place, centred, kept inside the picture."""
    ink = ink_of(text, scale)
    print_ink(picture, ink, place_of(picture, ink, centre))
