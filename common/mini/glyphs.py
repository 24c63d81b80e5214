"""Digits, letters and signs as strokes, so that no font is needed."""

import numpy as np

from common.mini.canvas import segment, union

# Polylines on a grid of 5 columns (0..4) and 7 rows (0..6, downwards): two figures a point, spaces between
# lines.
STROKES = {
    "0": "103041453616050110",
    "1": "022026 1636",
    "2": "0110304142330646",
    "3": "0110304142334445361605 2333",
    "4": "3004 0444 3036",
    "5": "400003334445361605",
    "6": "30100105163645443303",
    "7": "004016",
    "8": "103041423313020110 1304051636454433",
    "9": "4333130201103041433626",
    "A": "062046 1434",
    "B": "00063645443303 0030414233",
    "C": "4130100105163645",
    "D": "00063645413000",
    "E": "40000646 0333",
    "F": "400006 0333",
    "G": "41301001051636454323",
    "H": "0006 4046 0343",
    "I": "1030 2026 1636",
    "J": "4044361604",
    "K": "0006 400346",
    "L": "000646",
    "M": "0600234046",
    "N": "06004640",
    "O": "103041453616050110",
    "P": "06003041423303",
    "Q": "103041453616050110 2446",
    "R": "06003041423303 2346",
    "S": "413010010213334445361605",
    "T": "0040 2026",
    "U": "000516364540",
    "V": "002640",
    "W": "0016233640",
    "X": "0046 4006",
    "Y": "002340 2326",
    "Z": "00400646",
    "gamma": "410106",
    "delta": "06204606",
    "theta": "103041453616050110 1333",
    "lambda": "062046",
    "xi": "0040 1333 0646",
    "pi": "0040 1016 3036",
    "sigma": "4000230646",
    "phi": "2026 113142443515040211",
    "psi": "2026 000213334240",
    "omega": "061615040110304144353646",
    "question mark": "0110304142232 4 2626".replace("232 4", "2324"),
    "hash sign": "1016 3036 0242 0444",
    "equals sign": "0242 0444",
    "plus sign": "2125 0343",
}


def strokes(name: str) -> list[tuple[float, float, float, float]]:
    """Line pieces (ax, ay, bx, by) of a glyph, in -1..1."""
    pieces = []
    for line in STROKES[name].split():
        points = [((int(a) - 2) * 0.3, (int(b) - 3) * 0.25) for a, b in zip(line[::2], line[1::2])]
        pieces += [(*p, *q) for p, q in zip(points, points[1:])]
    return pieces


def glyph(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the strokes of a glyph; the caller subtracts half the pen's width."""
    return union(*(segment(x, y, *piece) for piece in strokes(name)))
