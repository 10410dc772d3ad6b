"""The phantom set: 900 synthetic chest films of children, drawn with numpy from fixed random numbers.

These pictures are drawings. No patient ever stood in front of them, no finding in them was ever read by
anyone, and they must never be presented as real. They exist so that every job and the Space can be tried end
to end without the real data, and so that a heat map can be held against a lesion whose place is known.

A film is built the way an X-ray comes about: the opacities of what the beam crosses add up, lungs subtract
because they hold air, disease fills part of that air, and an exposure turns opacity into gray. So disease is
bounded by the lung and hides the border of the heart beside it, as it does on a film.

*normal* has no lesion. *bacterial* has one consolidation inside one lobe. *viral* has a fine net of streaks
and a slight haze over both lungs, strongest around the hila. Anatomy, pose, exposure and marker come from
random numbers that know nothing of the class: the lesion is all there is to learn.

Lengths are in half picture sides, x from -1 to 1 rightwards and y from -1 to 1 downwards, unless a name says
px. The child faces the reader, so its heart and its left side are on the right of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.labels import BACTERIAL, CLASSES, NORMAL

COUNT = 900
MIN_SIZE_PX = 64  # below this, ribs and streaks are thinner than a pixel

# Child, film and lesion each have a random stream, so that none shifts the numbers of another.
# All arithmetic is float64: processors differ in the last bits, and those stay far below one gray level.
_SEED = 20180222
_PATIENT, _FILM, _LESION = range(3)

# 18 consecutive films of a class show 14 children.
_FILMS_PER_PATIENT = (1, 3, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1)
_PATIENT_OF_FILM = np.repeat(np.arange(len(_FILMS_PER_PATIENT)), _FILMS_PER_PATIENT)

_LETTERS = {  # one stroke each, in a box of height 1, from the upper left
    "L": ((0, 0), (0, 1), (0.55, 1)),
    "R": ((0, 1), (0, 0), (0.4, 0), (0.55, 0.1), (0.55, 0.4), (0.4, 0.5), (0, 0.5), (0.25, 0.5), (0.6, 1)),
}

_Pair = tuple[float, float]


@dataclass(frozen=True)
class Phantom:
    """One synthetic film and the truth about it.

    Attributes:
      name: the file name, such as `phantom_0007_bacterial.png`.
      patient: the key of the invented child; all films of a child share class and proportions.
      label: index into `model.labels.CLASSES`.
      image: the film, (size, size) uint8, bright where the beam was stopped.
      mask: where the lesion is, (size, size) bool, all False for a normal film. Bacterial: where the added
        opacity is at least half of its maximum. Viral: both lungs.
    """

    name: str
    patient: str
    label: int
    image: np.ndarray
    mask: np.ndarray


def draw(index: int, size: int = 224) -> Phantom:
    """Draws film number `index`: the same picture for the same arguments, on every run.

    Args:
      index: 0 to COUNT - 1; the classes take turns.
      size: height and width in pixels, at least MIN_SIZE_PX. The same chest is drawn at every size; blur and
        quantum noise, being per pixel, differ.

    Returns:
      The film, its lesion and its patient.

    Raises:
      ValueError: `index` or `size` is out of bounds.
    """
    if not 0 <= index < COUNT:
        raise ValueError(f"film index is {index}; the phantom set has 0 to {COUNT - 1}")
    if size < MIN_SIZE_PX:
        raise ValueError(f"film size is {size} px; at least {MIN_SIZE_PX} px is needed")
    label = _label(index)
    patient = _patient(index)
    film = np.random.default_rng((_SEED, _FILM, index))
    chest = _chest(_thorax(np.random.default_rng((_SEED, _PATIENT, patient))), film, size)

    filled = np.zeros((size, size))
    mask = np.zeros((size, size), dtype=bool)
    if label != NORMAL:
        lesion = _consolidation if label == BACTERIAL else _interstitial
        filled, mask = lesion(chest, np.random.default_rng((_SEED, _LESION, index)))

    opacity = chest.tissue - chest.air * (1 - filled)
    image = _exposed(opacity + _marker(film, size), film)
    return Phantom(f"phantom_{index:04d}_{CLASSES[label]}.png", f"child_{patient:04d}", label, image, mask)


def _label(index: int) -> int:
    """The class of a film."""
    return index % len(CLASSES)


def _patient(index: int) -> int:
    """The number of the child on a film; numbers take turns over the classes as films do."""
    block, place = divmod(index // len(CLASSES), len(_PATIENT_OF_FILM))
    within_class = block * len(_FILMS_PER_PATIENT) + int(_PATIENT_OF_FILM[place])
    return within_class * len(CLASSES) + _label(index)


# --- shapes ---------------------------------------------------------------------------------------


def _step(distance: np.ndarray, softness: float) -> np.ndarray:
    """0 below -softness, 1 above softness, smooth between."""
    t = distance * (0.5 / softness)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    smooth = -2 * t
    smooth += 3
    smooth *= t
    smooth *= t
    return smooth


def _bump(distance: np.ndarray, width: float) -> np.ndarray:
    """1 at distance 0, 0 beyond width on either side, smooth between."""
    t = distance * (1 / width)
    t *= -t
    t += 1
    np.clip(t, 0, 1, out=t)
    t *= t
    return t


def _off_whole(phase: np.ndarray) -> np.ndarray:
    """Signed distance to the nearest whole number: what repeats, repeats around 0."""
    return phase - np.round(phase)


def _joined(a: np.ndarray, b: np.ndarray, softness: float) -> np.ndarray:
    """The union of two shapes given by distances, its creases filled as skin fills an armpit."""
    crease = np.clip(softness - np.abs(a - b), 0, None)
    return np.maximum(a, b) + crease * crease / (4 * softness)


def _ellipse(x: np.ndarray, y: np.ndarray, center: _Pair, radii: _Pair, tilt: float = 0.0) -> np.ndarray:
    """Roughly the distance to an ellipse's outline, positive inside; tilt in radians, clockwise."""
    dx, dy = x - center[0], y - center[1]
    c, s = np.cos(tilt), np.sin(tilt)
    return min(radii) * (1 - _norm((c * dx + s * dy) / radii[0], (c * dy - s * dx) / radii[1]))


def _segment_distance(x: np.ndarray, y: np.ndarray, start: _Pair, end: _Pair) -> np.ndarray:
    """Distance to a straight segment."""
    dx, dy = x - start[0], y - start[1]
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    t = np.clip((dx * along_x + dy * along_y) / (along_x**2 + along_y**2), 0, 1)
    return _norm(dx - t * along_x, dy - t * along_y)


def _norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """np.hypot without its guard against overflow, in a third of the time."""
    return np.sqrt(x * x + y * y)


def _smooth_noise(rng: np.random.Generator, size: int, cell: float) -> np.ndarray:
    """Gaussian noise of unit variance whose features are about `cell` long: (size, size)."""
    nodes = np.arange(-1 - 2 * cell, 1 + 2 * cell, cell)
    weights = np.exp(-(((_axis(size)[:, None] - nodes) / (0.7 * cell)) ** 2))  # (size, nodes)
    weights /= np.sqrt(np.sum(weights**2, axis=1, keepdims=True))
    # einsum, not @: the threads of a BLAS cost more than they give on matrices this small.
    rows = np.einsum("ij,jk->ik", weights, rng.standard_normal((len(nodes), len(nodes))))
    return np.einsum("ik,jk->ij", rows, weights)


def _axis(size: int) -> np.ndarray:
    """Pixel centres along one side of the picture: (size,)."""
    return (np.arange(size) + 0.5) * 2 / size - 1


# --- anatomy --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Thorax:
    """The proportions of one child, shared by all its films."""

    width: float  # of one half of the rib cage
    apex: float  # y of its top
    base: float  # y of the angles beside the diaphragm
    taper: float  # 0: the cage narrows early, as a bell; 1: late, as a barrel
    wall: float  # skin, fat and muscle outside the ribs
    shoulder: float  # reach beyond the flank
    heart: float  # half length
    heart_tilt: float  # radians
    mediastinum: float  # half width above the heart
    domes: _Pair  # heights of the diaphragm on the patient's right and left
    rib_spacing: float
    rib_phase: float  # share of a spacing
    rib_droop: float  # from spine to flank
    rib_opacity: float


def _thorax(rng: np.random.Generator) -> _Thorax:
    """A child of about one to five years."""
    dome = rng.uniform(0.17, 0.25)
    return _Thorax(
        width=rng.uniform(0.68, 0.76),
        apex=rng.uniform(-0.78, -0.72),
        base=rng.uniform(0.60, 0.68),
        taper=rng.uniform(0, 1),
        wall=rng.uniform(0.06, 0.12),
        shoulder=rng.uniform(0.00, 0.08),
        heart=rng.uniform(0.33, 0.40),
        heart_tilt=rng.uniform(0.35, 0.65),
        mediastinum=rng.uniform(0.10, 0.16),
        domes=(dome + rng.uniform(0.02, 0.06), dome),
        rib_spacing=rng.uniform(0.125, 0.145),
        rib_phase=rng.uniform(0, 1),
        rib_droop=rng.uniform(0.16, 0.26),
        rib_opacity=rng.uniform(0.09, 0.15),
    )


@dataclass(frozen=True)
class _Chest:
    """What the beam crosses, pixel by pixel, and where things are; every array is (size, size)."""

    left: np.ndarray  # bool: the patient's left, right of the midline in the picture
    across: np.ndarray  # distance from the midline
    down: np.ndarray  # y in the child's upright frame
    lung: np.ndarray  # 0 to 1: lung hidden neither by heart nor by diaphragm
    hilum: np.ndarray  # distance from the nearer hilum
    bearing: np.ndarray  # half turns, -1 to 1: the direction from that hilum
    tissue: np.ndarray  # opacity, were the lungs airless
    air: np.ndarray  # opacity that their air takes away


def _chest(thorax: _Thorax, film: np.random.Generator, size: int) -> _Chest:
    """Poses a child before the film and draws what is inside."""
    x, y = _posed(film, size)
    left, u = x > 0, np.abs(x)
    breath = film.uniform(-0.05, 0.04)  # how far the diaphragm is pulled down
    base = thorax.base + breath

    rise = np.clip((base - y) / (base - thorax.apex), 0, 1)  # 0 at the base, 1 at the apex
    cage = thorax.width * np.sqrt(1 - rise * rise * rise * (1 + thorax.taper * (rise - 1)))
    inside_cage = cage - u
    dome = np.where(left, thorax.domes[1], thorax.domes[0]) - 0.5 * breath
    flatness = (u - 0.32 * thorax.width) / (0.68 * thorax.width)
    above_diaphragm = base - dome * (1 - flatness * flatness) - y

    radii = (thorax.heart, 0.74 * thorax.heart)
    heart = _ellipse(x, y, (0.12, 0.23 + breath), radii, thorax.heart_tilt)
    great_vessels = thorax.mediastinum - 0.06 * _step(y + 0.1, 0.6) - np.abs(x - 0.015)
    arch = _ellipse(x, y, (0.09, -0.18), (0.09, 0.11))
    mediastinum = _joined(_joined(great_vessels, arch, 0.08), heart, 0.12)

    edge = np.minimum(np.minimum(inside_cage, above_diaphragm), -mediastinum)
    lung = _step(edge, 0.025)
    # A hilum is no point: vessels leave along a short upright line.
    hilum_x, hilum_y = u - 0.13, y + 0.02 - np.clip(y + 0.02, -0.09, 0.09)
    hilum = _norm(hilum_x, hilum_y)
    bearing = np.arctan2(hilum_y + 0.4 * (y + 0.02), hilum_x) / np.pi

    tissue = _body(thorax, film, u, y)
    tissue += (0.10 * _step(mediastinum, 0.04) + 0.05 * _step(heart, 0.12)) * _step(y - thorax.apex - 0.1, 0.15)
    tissue += 0.06 * _step(-above_diaphragm, 0.06) * _step(inside_cage, 0.06)
    ribs = _ribs(thorax, u / np.maximum(cage, 0.05), u, y)
    tissue += ribs * _step(inside_cage + 0.01, 0.015) * (0.25 + 0.75 * _step(above_diaphragm + 0.03, 0.06))
    tissue += _spine(thorax, u, y)
    tissue += _vessels(film, hilum, bearing, size) * lung
    tissue -= _airway(x, y)
    tissue -= _stomach(film, x, y, base)

    depth = 0.68 + 0.32 * _step(edge - 0.09, 0.13)  # lungs are thinner towards their edges
    tone = 1 + 0.06 * _smooth_noise(film, size, 0.5)
    return _Chest(left, u, y, lung, hilum, bearing, tissue, air=0.50 * tone * depth * lung)


def _posed(film: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in the child's upright frame, x and y: (size, size) each."""
    turn = np.deg2rad(film.normal(0, 2.5))
    scale = film.uniform(0.97, 1.13)
    stretch = film.uniform(0.96, 1.04)
    x = _axis(size)[None, :] - film.normal(0, 0.03)
    y = _axis(size)[:, None] - film.normal(0, 0.03)
    c, s = np.cos(turn), np.sin(turn)
    return (c * x + s * y) / (scale * stretch), (c * y - s * x) * stretch / scale


def _body(thorax: _Thorax, film: np.random.Generator, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Trunk, neck and arms, with the bones of the shoulder: collar bone, blade and humerus."""
    flank = thorax.width + thorax.wall
    neck = film.uniform(0.24, 0.30)
    trunk = neck + (flank - neck) * _step(y - thorax.apex - 0.01, 0.22) - u
    joint = flank + thorax.shoulder - 0.13, thorax.apex + 0.25
    lifted = film.uniform(-0.9, 1.2)  # radians below the horizontal
    elbow = joint[0] + np.cos(lifted), joint[1] + np.sin(lifted)
    humerus = _segment_distance(u, y, joint, elbow)
    inside = _joined(trunk, 0.15 - humerus, 0.12)
    flesh = 0.42 + 0.45 * np.sqrt(np.clip(inside * (1 / 0.55), 0, 1))

    blade = _ellipse(u, y, (joint[0] - 0.05, joint[1] + 0.17), (0.13, 0.24), -0.25)
    curve = thorax.apex + 0.21 - film.uniform(0.05, 0.20) * u + 0.035 * np.sin(8 * u)
    ends = np.minimum(u - 0.09, thorax.width - 0.04 - u)
    clavicle = np.minimum(0.030 - np.abs(y - curve), 0.5 * ends)
    bones = 0.13 * _step(0.045 - humerus, 0.012) + 0.05 * _step(blade, 0.02) + 0.14 * _step(clavicle, 0.012)
    return (flesh + bones) * _step(inside, 0.012)


def _ribs(thorax: _Thorax, t: np.ndarray, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The ribs behind and, fainter, in front; `t` is 0 at the midline and 1 at the cage."""

    def tubes(center_line: np.ndarray, half_width: float) -> np.ndarray:
        phase = (y - center_line) * (1 / thorax.rib_spacing) + thorax.rib_phase
        off_center = np.abs(_off_whole(phase)) * thorax.rib_spacing
        # The walls of a tube stop more of the beam than its middle.
        return _step(half_width - off_center, 0.010) * (0.7 + 0.3 / half_width * off_center)

    t2 = t * t
    behind = tubes(thorax.rib_droop * (t2 * t2 - 0.35 * t * (1 - t)), 0.030)
    front = tubes(thorax.rib_droop * (1.5 - 1.65 * t), 0.034)
    shown = behind * (0.7 + 0.5 * t2) * _step(u - 0.07, 0.02) + 0.45 * front * _step(t - 0.5, 0.15)
    return thorax.rib_opacity * shown


def _spine(thorax: _Thorax, u: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The column of vertebrae and the discs between them."""
    discs = _bump(_off_whole((y - 0.03) * (1 / (0.85 * thorax.rib_spacing))), 0.22)
    return _step(0.070 - u, 0.015) * (0.09 - 0.06 * discs)


def _vessels(film: np.random.Generator, hilum: np.ndarray, bearing: np.ndarray, size: int) -> np.ndarray:
    """The markings of a healthy lung: vessels that leave the hilum, fork and thin out."""
    wander = _smooth_noise(film, size, 0.2)
    trunks = _bump(_off_whole(4 * bearing + 0.4 * wander), 0.17) * _bump(hilum, 0.32)
    branches = _bump(_off_whole(7 * bearing + 0.7 * wander), 0.15) * _bump(hilum - 0.24, 0.3)
    return film.uniform(0.05, 0.11) * (trunks + 0.6 * branches + 0.9 * _bump(hilum, 0.15))


def _airway(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Opacity taken away by the air in the windpipe and the two main bronchi."""
    fork = -0.20
    aside = np.abs(x + 0.01)
    windpipe = np.minimum(0.035 - aside, fork - y)
    bronchi = np.minimum(0.020 - 0.8 * np.abs(aside - 0.75 * (y - fork)), 0.16 - aside)
    return 0.10 * _step(windpipe, 0.015) + 0.06 * _step(bronchi, 0.015)


def _stomach(film: np.random.Generator, x: np.ndarray, y: np.ndarray, base: float) -> np.ndarray:
    """Opacity taken away by the bubble of air under the left dome; some films have none."""
    gas = max(0.0, film.uniform(-0.12, 0.25))
    center = film.uniform(0.26, 0.38), base + film.uniform(0.08, 0.14)
    radii = film.uniform(0.12, 0.20), film.uniform(0.07, 0.11)
    return gas * _step(_ellipse(x, y, center, radii), 0.03)


# --- lesions --------------------------------------------------------------------------------------


def _consolidation(chest: _Chest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One lobe, or a good part of it, full of fluid: (share of the air that is gone, mask)."""
    size = len(chest.lung)
    lung = chest.lung * (chest.left == (rng.random() < 0.5))
    down, across = chest.down[lung > 0.5], chest.across[lung > 0.5]
    upper = rng.random() < 0.4
    fissure = np.quantile(down, rng.uniform(0.45, 0.6)) + rng.uniform(-0.3, 0.3) * (chest.across - 0.35)
    lobe = lung * _step(fissure - chest.down if upper else chest.down - fissure, 0.03)

    center_x = np.quantile(across, rng.uniform(0.2, 0.8))
    center_y = np.quantile(down, rng.uniform(0.1, 0.4) if upper else rng.uniform(0.6, 0.9))
    aspect = rng.uniform(0.75, 1.35)
    ragged_x, ragged_y = (0.04 * _smooth_noise(rng, size, 0.20) for _ in range(2))
    radius = _norm((chest.across - center_x + ragged_x) * aspect, (chest.down - center_y + ragged_y) / aspect)
    # The radius that holds the wanted share of the lung, whatever its outline and the fissure cut away.
    radii = np.sort(radius[lobe > 0.5])
    reach = radii[min(int(rng.uniform(0.25, 0.38) * len(down)), len(radii) - 1)]

    # Densest in the middle, and crossed by the dark branches of airways that stayed open: air bronchograms.
    extent = lobe * _step(reach - radius, 0.08)
    middle = _step(0.7 * reach - radius, 0.6 * reach)
    bronchi = _bump(_off_whole(6 * chest.bearing + 16 * ragged_x), 0.16) * _bump(chest.hilum, 0.8)
    texture = 0.75 + 0.25 * middle + 0.06 * _smooth_noise(rng, size, 0.06) - 0.5 * bronchi * middle
    filled = np.clip(rng.uniform(0.65, 0.95) * texture, 0, 1) * extent
    added = chest.air * extent
    return filled, added >= 0.5 * added.max()


def _interstitial(chest: _Chest, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Thickened tissue between the air spaces of both lungs: (share of the air that is gone, mask)."""
    size = len(chest.lung)
    wander = _smooth_noise(rng, size, 0.12)
    net = _bump(_smooth_noise(rng, size, 0.075), 0.55) + _bump(_smooth_noise(rng, size, 0.055), 0.55)
    streaks = _bump(_off_whole(12 * chest.bearing + 0.8 * wander), 0.17) * _bump(chest.hilum - 0.1, 0.4)
    patchy = np.clip(1 + 0.3 * _smooth_noise(rng, size, 0.3), 0.3, 1.7)
    perihilar = 0.4 + 0.6 * _bump(chest.hilum, 0.62)
    pattern = rng.uniform(0.14, 0.26) * patchy * perihilar * (net + streaks)
    haze = rng.uniform(0.03, 0.10) + rng.uniform(0.04, 0.12) * _bump(chest.hilum, 0.5)
    return np.minimum(haze + pattern, 0.8) * chest.lung, chest.lung > 0.5


# --- the film -------------------------------------------------------------------------------------


def _marker(film: np.random.Generator, size: int) -> np.ndarray:
    """The opacity of a lead letter, L or R, in the upper corner of that side: (size, size)."""
    letter = "RL"[film.integers(2)]
    height = film.uniform(0.09, 0.13)
    inset, top = film.uniform(0.08, 0.16, 2)
    tilt = film.normal(0, 0.08)
    start = 1 - inset - 0.6 * height if letter == "L" else inset - 1
    rows = slice(0, size // 4)
    columns = slice(size - size // 4, size) if letter == "L" else rows
    x = (_axis(size)[None, columns] - start) / height
    y = (_axis(size)[rows, None] + 1 - top) / height
    x, y = x + tilt * y, y - tilt * x
    segments = pairwise(_LETTERS[letter])
    distance = np.min([_segment_distance(x, y, start, end) for start, end in segments], axis=0)
    opacity = np.zeros((size, size))
    opacity[rows, columns] = film.uniform(0.6, 1.0) * _step(0.10 - distance, 0.08)
    return opacity


def _exposed(opacity: np.ndarray, film: np.random.Generator) -> np.ndarray:
    """Turns opacity into a film: blur, exposure, contrast and quantum noise; (size, size) uint8."""
    spread = film.uniform(0.10, 0.25)  # the share that each neighbour gets
    wide = np.pad(opacity, 1, mode="edge")
    wide = wide[1:-1] + spread * (wide[:-2] - 2 * wide[1:-1] + wide[2:])
    blurred = wide[:, 1:-1] + spread * (wide[:, :-2] - 2 * wide[:, 1:-1] + wide[:, 2:])

    level, contrast, gamma = film.uniform(0.46, 0.58), film.uniform(3.8, 5.5), film.uniform(0.85, 1.2)
    black, white = film.uniform(0.00, 0.06), film.uniform(0.82, 0.97)
    # The characteristic curve of film: steep in the middle, flat at both ends.
    curve = 0.5 + 0.5 * np.tanh(0.5 * contrast * (blurred - level))
    gray = black + (white - black) * curve**gamma
    # Where much of the beam is stopped few quanta arrive, so bright parts are the noisy ones.
    gray += film.uniform(0.006, 0.020) * (0.6 + 0.7 * gray) * film.standard_normal(gray.shape)
    return np.round(255 * np.clip(gray, 0, 1)).astype(np.uint8)
