"""Paint a face from its factors: layers of soft-edged shapes, from the background to the hat.

Every layer is a distance, negative inside a shape and positive outside, which `Canvas.cover` turns into an opacity with
an edge one pixel wide, and a colour, which shading may vary over the layer. Shapes are functions of continuous
coordinates, so the same face comes out at every size. Three frames of coordinates are in use, all with x to the right
and y down, in units of somewhat more than half the picture's width:

    x, y      the picture: the window SQUARE is what a model sees, and larger windows show more around it
    hx, hy    the head: origin between the eyes, tilted with the head; the outlines of head and hair live here
    u, v      the face: like hx, hy, but moving over the round head as it turns and nods; eyes, nose and mouth live here

A canvas keeps these coordinates for every pixel, as planes beside the three of colour, so that a box cut out of it has
everything that a feature needs to be painted. Each feature is one short function of the canvas and the sitter f.
"""

import colorsys
import math
from types import SimpleNamespace

import numpy as np

SQUARE = (-0.86, -0.88, 0.86, 0.84)  # left, top, right, bottom of the picture that a model sees
EYE_LINE = -0.06  # the head's origin in the picture: the eyes stand at 48% of the height
NOD_RADIUS = 0.95  # of the round surface that carries the face, from forehead to chin
SKULL_TOP, CHIN = 0.66, 0.64  # how far the head reaches above and below the eyes
BRAIN_CASE = -0.14  # hy of the widest part of the hair, the centre of the dome that it forms
ZERO, ONE = np.array(0.0, dtype=np.float32), np.array(1.0, dtype=np.float32)


# --- primitives ------------------------------------------------------------------------------------------------------


def rgb(red, green, blue):
    """A colour, 0..1 for each channel, in the shape (3, 1, 1) that paints planes."""
    return np.array([red, green, blue], dtype=np.float32).reshape(3, 1, 1)


def hsl(hue, saturation, lightness):
    """A colour from its hue (0..1 around the circle), saturation and lightness (0..1)."""
    return rgb(*colorsys.hls_to_rgb(hue % 1.0, lightness, saturation))


def muted(hue, saturation, lightness):
    """Like hsl, with green and magenta, which look loud beside skin, toned down."""
    loud = max(math.exp(-(((hue % 1.0 - place) / 0.10) ** 2)) for place in (0.33, 0.83))
    return hsl(hue, saturation * (1.0 - 0.5 * loud), lightness)


def mix(first, second, amount):
    """first where amount is 0, second where it is 1; numbers, colours or arrays."""
    return first + (second - first) * amount


def palette(colours, position):
    """The colour at a position (0..1) along a list of colours that blend into each other."""
    place = min(max(position, 0.0), 1.0) * (len(colours) - 1)
    index = min(int(place), len(colours) - 2)
    return mix(colours[index], colours[index + 1], place - index)


def clamp(x):
    """An array limited to 0..1. The method is quicker than np.clip, and limits that are arrays quicker than numbers."""
    return x.clip(ZERO, ONE)


def positive(x):
    """x where it is positive, else 0; numpy clips to two limits several times as fast as to one."""
    return x.clip(0.0, 1e9)


def smoothstep(low, high, x):
    """0 below low, 1 above high, and 3 t^2 - 2 t^3 in between, which starts and ends level."""
    t = clamp((x - low) / (high - low))
    return t * t * (3.0 - 2.0 * t)


def bump(x, y, cx, cy, rx, ry):
    """A soft hill of height 1 at (cx, cy), close to exp(-((x - cx) / rx)^2 - ((y - cy) / ry)^2).

    It is (1 - r^2 / 4)^4, whose logarithm begins like the exponential's: quicker to compute, and 0 from r = 2 on.
    """
    dx, dy = (x - cx) * (0.5 / rx), (y - cy) * (0.5 / ry)
    return np.square(np.square(clamp(1.0 - dx * dx - dy * dy)))


def ridge(distance, width):
    """bump across a line: 1 on it, falling off on both sides over a width."""
    scaled = distance * (0.5 / width)
    return np.square(np.square(clamp(1.0 - scaled * scaled)))


def length(x, y):
    """The length of the vector (x, y)."""
    return np.sqrt(x * x + y * y)


def ellipse(x, y, cx, cy, rx, ry):
    """Distance to an ellipse, exact to first order at its edge: q (q - 1) / |grad|, with q the relative radius."""
    dx, dy = (x - cx) / rx, (y - cy) / ry
    q = np.sqrt(dx * dx + dy * dy) + 1e-6
    dx, dy = dx / rx, dy / ry
    return q * (q - 1.0) / (np.sqrt(dx * dx + dy * dy) + 1e-6)


def squircle(a, b, squareness):
    """The relative radius at (a, b) of a shape that is a circle at squareness 0 and a square at 1: 1 on its outline."""
    aa, bb = a * a, b * b
    return np.sqrt(aa + bb - squareness * clamp(aa) * clamp(bb)) + 1e-6


def segment(x, y, start, end):
    """Distance to the line between two points."""
    (ax, ay), (bx, by) = start, end
    dx, dy = bx - ax, by - ay
    along = clamp(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-9))
    return length(x - ax - along * dx, y - ay - along * dy)


def smooth_max(a, b, radius):
    """The larger of two distances (where both shapes overlap), its corner rounded over about `radius`."""
    return 0.5 * (a + b + np.sqrt((a - b) ** 2 + radius * radius))


def lambert(nx, ny, nz, lamp):
    """Light on a surface of normal (nx, ny, nz), 0..1: the cosine to the light, wrapped a little around the edge."""
    cosine = (nx * lamp[0] + ny * lamp[1] + nz * lamp[2]) / np.sqrt(nx * nx + ny * ny + nz * nz + 1e-6)
    return clamp((cosine + 0.35) / 1.35)


class Canvas:
    """A picture, or a box of one: float32 planes (12, H, W).

    Three are of colour, six of coordinates, and three tell of the head its relief, the light on it, and where it is.

    crop gives a Canvas whose planes are views: painting into it paints the whole picture.
    """

    def __init__(self, planes, left, top, pixel, pose):
        self.planes, self.left, self.top, self.pixel, self.pose = planes, left, top, pixel, pose

    colour = property(lambda self: self.planes[:3])
    x, y, hx, hy, u, v, relief, light, head = (property(lambda self, i=i: self.planes[i]) for i in range(3, 12))

    @classmethod
    def blank(cls, pose, window, height, width):
        """An unpainted picture of a window (left, top, right, bottom), its coordinates filled in."""
        left, top, right, bottom = window
        pixel = (right - left) / width
        canvas = cls(np.zeros((12, height, width), dtype=np.float32), left, top, pixel, pose)
        canvas.x[:] = left + pixel * (np.arange(width) + 0.5)
        canvas.y[:] = (top + (bottom - top) / height * (np.arange(height) + 0.5))[:, None]
        dx, dy = canvas.x - pose.x, canvas.y - pose.y
        canvas.hx[:] = dx * pose.tilt[0] + dy * pose.tilt[1]
        canvas.hy[:] = dy * pose.tilt[0] - dx * pose.tilt[1]
        canvas.u[:] = roll_back(canvas.hx, pose.turn_radius, *pose.turn)
        canvas.v[:] = roll_back(canvas.hy, NOD_RADIUS, *pose.nod)
        return canvas

    def crop(self, x, y, rx, ry):
        """The box within rx, ry of a point of the picture."""
        left, top = (x - rx - self.left) / self.pixel, (y - ry - self.top) / self.pixel
        column, row = max(int(left), 0), max(int(top), 0)
        columns = slice(column, max(int(left + 2.0 * rx / self.pixel) + 2, column))
        rows = slice(row, max(int(top + 2.0 * ry / self.pixel) + 2, row))
        return Canvas(self.planes[:, rows, columns], self.left + column * self.pixel, self.top + row * self.pixel,
                      self.pixel, self.pose)

    def around(self, u, v, ru, rv):
        """The box around a point of the face that shows ru, rv to its sides, whatever the pose."""
        x, y = self.pose.place(u, v)
        lean = abs(self.pose.tilt[1])
        return self.crop(x, y, ru * 1.15 + lean * rv + 0.02, rv * 1.1 + lean * ru + 0.02)

    def cover(self, distance, softness=0.0):
        """The opacity 0..1 of a shape: its edge is a pixel wide, or `softness` where that is more."""
        return clamp(0.5 - distance * (1.0 / max(self.pixel, softness)))

    def paint(self, colour, opacity):
        """Lay a colour, (3, 1, 1) or one for each pixel, over the picture with an opacity (H, W)."""
        before = self.colour.copy()  # with which NumPy is quicker than with a box of a larger array
        change = colour - before
        change *= opacity
        change += before
        self.colour[:] = change

    def tint(self, factor, amount):
        """Multiply the picture by a colour, as a glaze or a shadow does, where amount (H, W) is 1."""
        change = (factor - 1.0) * amount
        change += 1.0
        self.planes[:3] *= change


def roll_back(x, radius, cosine, sine):
    """Where a point seen at x stood before the ball of that radius was rolled by an angle.

    A point beyond the ball, which shows nothing of it, comes out beyond the face, too.
    """
    seen = np.clip(x, -0.97 * radius, 0.97 * radius)
    return seen * cosine - np.sqrt(radius * radius - seen * seen) * sine + 3.0 * (x - seen)


def roll(x, radius, cosine, sine):
    """Where a point at x of the ball is seen once the ball has rolled: the inverse of roll_back."""
    return x * cosine + math.sqrt(max(radius * radius - x * x, 0.0)) * sine


class Pose:
    """Where the head is and how it is turned: its origin in the picture, and (cos, sin) of turn, nod and tilt."""

    def __init__(self, f):
        self.turn, self.nod, self.tilt = (
            (math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in (f.turn, f.nod, f.tilt)
        )
        # A photo is aligned to the eyes, so that a turned head moves against its turn, by half of what the face moves.
        self.turn_radius = 1.06 * f.head_width
        self.x = -0.5 * self.turn_radius * self.turn[1]
        self.y = EYE_LINE - 0.6 * NOD_RADIUS * self.nod[1]

    def place_head(self, hx, hy):
        """The picture's x, y of a point of the head's frame."""
        return self.x + hx * self.tilt[0] - hy * self.tilt[1], self.y + hy * self.tilt[0] + hx * self.tilt[1]

    def place(self, u, v):
        """The picture's x, y of a point of the face."""
        return self.place_head(roll(u, self.turn_radius, *self.turn), roll(v, NOD_RADIUS, *self.nod))


# --- colours ---------------------------------------------------------------------------------------------------------

SKINS = [rgb(0.98, 0.85, 0.77), rgb(0.96, 0.79, 0.68), rgb(0.90, 0.69, 0.54), rgb(0.74, 0.52, 0.38),
         rgb(0.55, 0.36, 0.26), rgb(0.39, 0.25, 0.19)]
HAIRS = [rgb(0.95, 0.84, 0.62), rgb(0.83, 0.65, 0.40), rgb(0.58, 0.40, 0.24), rgb(0.38, 0.24, 0.15),
         rgb(0.22, 0.14, 0.10), rgb(0.11, 0.09, 0.10)]
REDS = [rgb(0.88, 0.60, 0.40), rgb(0.70, 0.36, 0.20), rgb(0.50, 0.20, 0.12), rgb(0.24, 0.10, 0.09)]
GRAYS = [rgb(0.92, 0.91, 0.89), rgb(0.62, 0.62, 0.64), rgb(0.44, 0.44, 0.46)]
IRISES = [rgb(0.25, 0.14, 0.08), rgb(0.42, 0.25, 0.12), rgb(0.45, 0.42, 0.20), rgb(0.30, 0.48, 0.38),
          rgb(0.30, 0.50, 0.68)]
SHADE, LIT = rgb(0.56, 0.42, 0.41), rgb(1.05, 1.04, 1.02)  # what deep shadow and full light make of a skin
SHADOW = rgb(0.66, 0.52, 0.52)  # a cast shadow on skin: darker, and warm since skin lets red light through


def sitter(factors):
    """The factors as attributes, and what follows from them: pose, lamp (the unit vector to the light), colours."""
    f = SimpleNamespace(**factors)
    f.pose = Pose(f)
    norm = math.sqrt(f.light_x**2 + f.light_y**2 + 0.85**2)
    f.lamp = f.light_x / norm, f.light_y / norm, 0.85 / norm
    f.skin_colour = palette(SKINS, f.skin_tone) * rgb(1.0 + 0.02 * f.undertone, 1.0, 1.0 - 0.05 * f.undertone)
    f.hair_colour = mix(palette(HAIRS, f.hair_dark), palette(REDS, f.hair_dark), f.hair_red)
    f.hair_colour = mix(f.hair_colour, palette(GRAYS, f.hair_dark), f.hair_gray)
    f.brow_colour = mix(f.hair_colour, rgb(0.16, 0.11, 0.09), 0.45 - 0.25 * f.hair_gray)
    natural_lips = f.skin_colour * mix(rgb(0.93, 0.68, 0.66), rgb(0.88, 0.66, 0.66), f.skin_tone)
    painted_lips = hsl(0.985 + 0.05 * f.lip_hue, 0.62, mix(0.50, 0.34, f.skin_tone))
    f.lip_colour = mix(natural_lips, painted_lips, 0.85 * f.lipstick)
    f.iris_colour = palette(IRISES, f.iris)
    f.frame_colour = mix(rgb(0.10, 0.09, 0.10), rgb(0.72, 0.52, 0.30), f.glasses_gold)
    f.clothes_colour = muted(f.clothes_hue, f.clothes_saturation, f.clothes_light)
    f.hat_colour = muted(f.hat_hue, 0.7 * f.clothes_saturation, 0.55 * f.clothes_light + 0.12)
    f.background_colour = muted(f.background_hue, f.background_saturation, f.background_light)
    return f


def lit_skin(f, light):
    """The colour of skin under a given light (H, W): planes (3, H, W)."""
    return f.skin_colour * (SHADE + (LIT - SHADE) * light)


# --- behind and below the head ---------------------------------------------------------------------------------------


def background(canvas, f):
    """A wall: lighter near a glow on the lit side, darker towards the bottom and the corners."""
    glow = bump(canvas.x, canvas.y, 0.9 * f.lamp[0], -0.45, 1.25, 1.25)
    corner = canvas.x * canvas.x + canvas.y * canvas.y
    canvas.colour[:] = f.background_colour * (0.86 + 0.40 * glow - 0.10 * canvas.y - 0.07 * corner)


def shoulder_line(x, f):
    """The y of the top of the shoulders over x (H, W)."""
    away = np.abs(x)
    width = mix(0.92, 1.10, f.male)
    return 0.70 + 0.28 * smoothstep(0.15, 0.75, away) + 1.4 * smoothstep(width - 0.22, width + 0.28, away)


def neck(canvas, f):
    """Neck and the skin of the chest, with the shadow that the chin throws on them."""
    middle = 0.55 * canvas.pose.x
    width = mix(0.175, 0.24, f.male) + 0.03 * f.cheeks
    part = canvas.crop(0.0, 0.98, 0.75, 0.62)
    x = part.x - middle
    half = width + 0.16 * smoothstep(0.60, 1.0, part.y) ** 2
    distance = smooth_max(np.abs(x) - half, 0.3 - part.y, 0.02)
    distance = np.minimum(distance, shoulder_line(part.x, f) - part.y + 0.02)
    nx = np.clip(x / half, -1.0, 1.0)
    lit = lambert(0.85 * nx, 0.12, np.sqrt(1.02 - 0.9 * nx * nx), f.lamp)
    chin_x, chin_y = canvas.pose.place_head(0.25 * canvas.pose.turn[1], CHIN * f.face_length)
    under = bump(part.x, part.y, chin_x - 0.10 * f.lamp[0], chin_y + 0.02, 0.36, 0.19)
    part.paint(lit_skin(f, clamp(lit - 0.50 * under)), part.cover(distance))


def clothes(canvas, f):
    """A top with a round neckline, its collar a little lighter, its sides turning into shadow."""
    part = canvas.crop(0.0, 1.2, 1.5, 0.5)
    x, y = part.x, part.y
    opening = ellipse(x, y, 0.55 * canvas.pose.x, 0.64, 0.26 + 0.22 * f.neckline, 0.15 + 0.40 * f.neckline)
    depth = y - shoulder_line(x, f)
    distance = smooth_max(-depth, -opening, 0.02)
    lit = lambert(0.6 * x, mix(-0.55, 0.1, smoothstep(0.0, 0.45, depth)), 0.75, f.lamp)
    part.paint(f.clothes_colour * (0.50 + 0.58 * lit), part.cover(distance))
    collar = np.maximum(distance, opening - 0.055)
    part.paint(mix(f.clothes_colour, 1.0, 0.16) * (0.50 + 0.58 * lit), part.cover(collar))


def ears(canvas, f):
    """Two ears, the one on the side that the head turns away from standing out more; earrings below them."""
    if f.hair_density > 0.0 and not f.hair_short:
        return  # long hair covers them
    turn, nod = canvas.pose.turn[1], canvas.pose.nod[1]
    for side in (-1.0, 1.0):
        ex = side * (f.head_width * 0.97 - 0.10 * side * turn)
        ey = 0.07 - 0.25 * nod
        part = canvas.crop(*canvas.pose.place_head(ex, ey + 0.05), 0.17, 0.27)
        x, y = (part.hx - ex) * side, part.hy - ey
        lean = x + 0.16 * y
        distance = ellipse(lean, y, 0.015, 0.0, 0.075, 0.135)
        lit = lambert(0.7 * side, -0.1, 0.7, f.lamp)
        hollow = bump(lean, y, 0.005, -0.005, 0.035, 0.075)
        part.paint(lit_skin(f, clamp(0.95 * lit - 0.45 * hollow)) * rgb(1.0, 0.95, 0.95), part.cover(distance))
        if f.earrings > 0.0:
            bead = ellipse(x, y, 0.0, 0.165, 0.022 + 0.014 * f.earrings, 0.024 + 0.030 * f.earrings)
            shine = bump(x, y, side * 0.012 * f.lamp[0], 0.155, 0.014, 0.014)
            part.paint(mix(rgb(0.85, 0.66, 0.30), rgb(1.0, 0.97, 0.86), shine), part.cover(bead))


# --- the head --------------------------------------------------------------------------------------------------------


def head_outline(canvas, f):
    """Distance to the head's outline, and its relative coordinates (a, b) with a^2 + b^2 = 1 on the outline."""
    low = CHIN * f.face_length
    below = positive(canvas.hy)
    b = (canvas.hy - below) * (1.0 / SKULL_TOP) + below * (1.0 / low)
    shift = 0.26 * canvas.pose.turn[1]
    level = clamp(b)
    squared = level * level
    half = f.head_width * (1.0 + (0.02 + 0.26 * f.jaw) * squared - (0.07 - 0.12 * f.cheeks) * level)
    a = (canvas.hx - shift * squared) / half
    q = squircle(a, b, mix(0.28, 0.02 + 0.26 * f.jaw, b > 0.0))
    slope = np.sqrt((a / half) ** 2 + (b / low) ** 2) + 1e-6
    return q * (q - 1.0) / slope, a, b


def carve(part, f):
    """Fill the relief, how far the face stands out from an egg: brow ridge, eye sockets, cheekbones, nose and chin."""
    band = part.around(0.0, 0.08, 0.60, 0.33)
    away, v, eye = np.abs(band.u), band.v, 0.205 * f.eye_spacing
    band.relief[:] = (
        0.034 * bump(away, v, eye, -0.125, 0.15, 0.055)
        - 0.050 * bump(away, v, eye - 0.02, -0.005, 0.13, 0.085)
        + (0.030 + 0.030 * max(f.smile, 0.0)) * bump(away, v, 0.28, 0.19 - 0.02 * f.smile, 0.13, 0.11)
    )
    middle = part.around(0.0, 0.25, 0.30, 0.52)
    u, v, tip, line = middle.u, middle.v, nose_tip(f), mouth_line(f)
    lean = 0.10 * part.pose.turn[1]  # what stands out moves further with the turn
    middle.relief[:] += (
        0.055 * bump(u, v, 0.5 * lean, tip - 0.16, 0.052, 0.17)
        + 0.085 * bump(u, v, lean, tip, 0.065 * f.nose_width, 0.062)
        + 0.022 * bump(np.abs(u - lean), v, 0.085 * f.nose_width, tip + 0.022, 0.042, 0.040)
        + 0.020 * bump(u, v, 0.0, line, 0.16, 0.085)
        - 0.012 * bump(u, v, 0.0, line + 0.125, 0.12, 0.045)
        + 0.025 * bump(u, v, 0.0, 0.56 * f.face_length, 0.14, 0.09)
    )


def slopes(height, pixel):
    """The slopes (down, across) of a height map: central differences, 0 at its border."""
    down, across = np.zeros_like(height), np.zeros_like(height)
    np.subtract(height[2:], height[:-2], out=down[1:-1])
    np.subtract(height[:, 2:], height[:, :-2], out=across[:, 1:-1])
    return down * (0.5 / pixel), across * (0.5 / pixel)


def skin(part, f, a, b):
    """The skin of the head, lit from the light's direction: an egg with the face's relief, and a gloss on it."""
    carve(part, f)
    down, across = slopes(part.relief, part.pixel)
    nx, ny, nz = 0.85 * a - 1.1 * across, 0.62 * b - 1.1 * down, np.sqrt(np.clip(1.08 - a * a - b * b, 0.03, 2.0))
    part.light[:] = lambert(nx, ny, nz, f.lamp)
    # Skin is glossiest where it faces about halfway between the lamp and the eye.
    gloss = (0.55 * f.lamp[0] * nx + 0.55 * f.lamp[1] * ny + nz) / np.sqrt(nx * nx + ny * ny + nz * nz)
    gloss = np.square(np.square(np.square(clamp(gloss - 0.05))))
    part.colour[:] = lit_skin(f, part.light) + (0.09 * gloss * gloss) * rgb(1.0, 0.96, 0.90)
    tip = part.around(0.0, nose_tip(f), 0.18, 0.16)
    tip.tint(rgb(1.0, 0.80, 0.74), 0.35 * bump(tip.u, tip.v, 0.0, nose_tip(f), 0.09, 0.08))


def head(canvas, f):
    """The head and the face on it: painted over a whole box, then cut out along the head's outline."""
    lean = 0.6 * abs(canvas.pose.tilt[1])
    part = canvas.crop(canvas.pose.x, canvas.pose.y, 1.06 * f.head_width + 0.04 + lean, SKULL_TOP + 0.08)
    behind = part.colour.copy()
    distance, a, b = head_outline(part, f)
    part.head[:] = part.cover(distance)
    skin(part, f, a, b)
    cheeks(part, f)
    mouth(part, f)
    nose(part, f)
    eyes(part, f)
    brows(part, f)
    part.colour[:] = mix(behind, part.colour, part.head)


def cheeks(canvas, f):
    """Blush on the cheeks, and what age draws: folds beside the mouth, bags under the eyes, lines on the forehead."""
    part = canvas.around(0.0, 0.19, 0.55, 0.28)
    away, v = np.abs(part.u), part.v
    spot = bump(away, v, 0.28, 0.18 - 0.02 * f.smile, 0.13, 0.085)
    part.tint(rgb(1.02, 0.62, 0.62), (0.08 + 0.45 * f.blush) * spot)
    corner = (0.215 + 0.02 * f.smile, mouth_line(f) - 0.02)
    fold = segment(away, v, (0.105 * f.nose_width, nose_tip(f) + 0.02), corner)
    part.tint(SHADOW, (0.14 * max(f.smile, 0.0) + 0.30 * f.age) * ridge(fold, 0.024))
    if f.age > 0.3:
        bag = ridge(v - 0.095 + 0.9 * (away - 0.20) ** 2, 0.016) * ridge(away - 0.20, 0.09)
        part.tint(SHADOW, (f.age - 0.3) * bag)
    if f.age > 0.45:
        part = canvas.around(0.0, -0.29, 0.32, 0.10)
        waves = ridge(part.v + 0.26, 0.014) + ridge(part.v + 0.33, 0.014)
        part.tint(SHADOW, 0.45 * (f.age - 0.45) * waves * ridge(part.u, 0.22))


# --- features --------------------------------------------------------------------------------------------------------


def nose_tip(f):
    """The v of the tip of the nose."""
    return 0.215 * f.nose_length * f.face_length


def mouth_line(f):
    """The v of the line between the lips, at their middle."""
    return 0.405 * f.face_length


def eyes(canvas, f):
    """Both eyes at once: seen from the nose outwards, they are the same shape."""
    part = canvas.around(0.0, -0.01, 0.40, 0.12)
    out = np.abs(part.u) - 0.205 * f.eye_spacing
    s = out / (0.108 * f.eye_size)
    v = part.v + f.eye_tilt * out
    arch = 1.0 - s * s
    upper = -(0.070 * f.eye_open * f.eye_size) * arch * (1.0 - 0.10 * s + 0.18 * s * s)
    lower = (0.046 * f.eye_size * (0.55 + 0.45 * f.eye_open) - 0.014 * max(f.smile, 0.0)) * arch
    # Along the eye s goes from -1 at its inner corner to 1 at its outer one; the lids meet there.
    eyelids(part, f, s, v, upper)
    eyeballs(part, f, s, v, upper, lower)
    lashes(part, f, s, v, upper, lower)


def eyelids(part, f, s, v, upper):
    """The lid above an eye: its crease, the shade below the brow, and eye shadow if there is any."""
    lid = bump(s, v, 0.1, -0.045 - 0.03 * f.eye_open, 1.1, 0.045)
    part.tint(SHADOW, 0.26 * lid)
    part.tint(hsl(0.93 + 0.1 * f.lip_hue, 0.35, 0.42), 0.60 * f.makeup * lid)
    crease = np.abs(v - upper + 0.030 + 0.008 * s) - 0.002
    part.tint(SHADOW * 0.9, 0.75 * part.cover(crease, 0.022) * smoothstep(1.15, 0.6, np.abs(s)))


def eyeballs(part, f, s, v, upper, lower):
    """The white, iris, pupil and highlight, seen between the lids."""
    inside = part.cover(np.maximum(upper - v, v - lower))
    # Gaze and highlight go the same way in both eyes, so here x is to the right in the left one, too.
    x = s * np.sign(part.u) * (0.108 * f.eye_size) - 0.034 * f.gaze_x
    y = v + 0.012 - 0.018 * f.gaze_y
    lid_shadow = np.exp(np.maximum(v - upper, 0.0) / -0.022)
    corner = smoothstep(0.55, 1.05, np.abs(s))
    part.paint(rgb(0.97, 0.95, 0.94) * (1.0 - 0.36 * lid_shadow - 0.18 * corner), inside)
    radius = 0.058 * (0.6 + 0.4 * f.eye_size)
    q = np.sqrt(x * x + y * y)
    level = (0.95 + 3.6 * y) * (1.0 - 0.35 * lid_shadow) * (1.0 - 0.55 * smoothstep(0.72 * radius, radius, q))
    part.paint(f.iris_colour * level, inside * part.cover(q - radius))
    part.paint(rgb(0.04, 0.03, 0.03), inside * part.cover(q - 0.42 * radius, 0.012))
    gleam = length(x - 0.026 * (0.3 + f.lamp[0]), y + 0.022) - 0.017
    part.paint(rgb(1.0, 1.0, 1.0), 0.95 * inside * part.cover(gleam, 0.012))


def lashes(part, f, s, v, upper, lower):
    """The dark line of the upper lashes, stronger outwards and with make-up, and a faint one below the eye."""
    dark = rgb(0.10, 0.07, 0.06)
    along = np.clip(s, -1.0, 1.25)
    wing = np.maximum(s - 0.95, 0.0) * (0.075 * f.makeup + 0.015)
    curve = np.minimum(upper, 0.0) - wing
    thick = 0.006 + (0.004 + 0.008 * f.makeup) * (0.6 + 0.6 * along)
    reach = smoothstep(1.30, 1.0, s) * smoothstep(-1.16, -0.96, s)
    part.paint(dark, (0.62 + 0.34 * f.makeup) * part.cover(np.abs(v - curve) - thick, 0.010) * reach)
    line = part.cover(np.abs(v - lower) - 0.002, 0.012) * smoothstep(1.0, 0.7, np.abs(s))
    part.paint(dark, (0.30 + 0.2 * f.makeup) * line)


def brows(canvas, f):
    """Eyebrows: bent strokes, thick near the nose and running out at the temple."""
    level = -0.168 - 0.035 * f.brow_raise - 0.02 * (f.eye_open - 1.0)
    part = canvas.around(0.0, level, 0.42, 0.09)
    s = (np.abs(part.u) - 0.212 * f.eye_spacing) / 0.150
    inner, outer = np.minimum(s - 0.2, 0.0), np.maximum(s - 0.2, 0.0)
    bend = f.brow_arch * (0.020 * inner * inner + 0.085 * outer * outer) - 0.016 * f.brow_slant * s
    taper = smoothstep(-1.15, -0.45, s) * (1.0 - 0.62 * smoothstep(-0.3, 1.1, s))
    distance = np.abs(part.v - level - bend) - 0.030 * f.brow_thickness * taper
    ends = smoothstep(-1.10, -0.85, s) * smoothstep(1.12, 0.90, s)
    part.paint(f.brow_colour * (0.55 + 0.5 * part.light), 0.86 * ends * part.cover(distance, 0.024))


def nose(canvas, f):
    """Nostrils, the crease beside each wing, the shadow below the nose; its form comes from the relief."""
    tip, wide = nose_tip(f), f.nose_width
    part = canvas.around(0.0, tip + 0.02, 0.24, 0.15)
    u = part.u - 0.10 * canvas.pose.turn[1]
    v = part.v - tip
    part.tint(SHADOW, 0.42 * bump(u + 0.05 * f.lamp[0], v, 0.0, 0.075, 0.095 * wide, 0.028))
    away = np.abs(u)
    part.tint(SHADOW * 0.9, 0.45 * bump(away, v, 0.112 * wide, 0.030, 0.016, 0.034))
    part.paint(f.skin_colour * rgb(0.36, 0.22, 0.20), 0.62 * bump(away, v, 0.047 * wide, 0.050, 0.028 * wide, 0.014))
    part.paint(rgb(1.0, 0.97, 0.93), 0.20 * bump(u - 0.03 * f.lamp[0], v, 0.0, -0.02, 0.028, 0.026))


def mouth(canvas, f):
    """Lips around a gap that shows teeth; the corners go up with a smile."""
    line, half = mouth_line(f), 0.150 * f.mouth_width + 0.030 * f.smile
    part = canvas.around(0.0, line + 0.02, half + 0.06, 0.18)
    u = part.u - 0.03 * canvas.pose.turn[1]
    s = u / half
    arch = 1.0 - s * s
    v = part.v - line + 0.052 * f.smile * (s * s - 0.35)
    gap = 0.085 * f.mouth_open
    bow = 1.0 - 0.28 * ridge(s, 0.20) + 0.10 * ridge(np.abs(s) - 0.32, 0.20)
    top = -(0.048 * f.lip_fullness + 0.25 * gap) * arch * bow
    seam = -0.25 * gap * arch
    parted = 0.75 * gap * arch
    bottom = parted + 0.064 * f.lip_fullness * arch * (1.0 - 0.1 * s * s)
    part.tint(SHADOW, 0.42 * bump(u, v, 0.0, 0.085 * f.lip_fullness + 0.8 * gap, 0.11, 0.024))
    part.tint(SHADOW, 0.45 * bump(np.abs(s), v, 1.03, 0.0, 0.10, 0.022))
    lips = part.cover(np.maximum(top - v, v - bottom), 0.014 - 0.006 * f.lipstick)
    lit = 0.70 + 0.34 * part.light - 0.16 * part.cover(v - seam, 0.02)
    gloss = bump(s, v, 0.18 * f.lamp[0], parted + 0.030, 0.42, 0.014) * (0.14 + 0.22 * f.lipstick)
    part.paint(f.lip_colour * lit + gloss, lips)
    closed = part.cover(np.abs(v - seam) - 0.002, 0.014) * smoothstep(1.08, 0.9, np.abs(s))
    if gap > 0.0:
        inside = part.cover(np.maximum(seam - v, v - parted)) * min(1.0, 14.0 * f.mouth_open)
        inner_mouth(part, f, inside, (v - seam) / gap, s)
        closed *= 1.0 - 0.8 * inside
    part.paint(f.lip_colour * 0.42, 0.75 * closed)


def inner_mouth(part, f, inside, depth, s):
    """What an open mouth shows: dark, a tongue below, and the upper teeth, most of them in a smile.

    inside is the opacity of the gap between the lips, depth goes from 0 at its top to 1 at its bottom.
    """
    part.paint(rgb(0.30, 0.09, 0.09), inside)
    part.paint(rgb(0.70, 0.32, 0.32), inside * 0.8 * smoothstep(0.45, 0.75, depth))
    reach = min(0.62, 0.5 / f.mouth_open) * (0.4 + 0.6 * (1.0 - s * s))
    teeth = part.cover((depth - reach) * 0.085 * f.mouth_open, 0.008) * smoothstep(1.0, 0.75, np.abs(s))
    teeth *= min(max(2.0 * (f.smile + f.mouth_open) + 0.2, 0.0), 1.0)
    part.paint(rgb(0.97, 0.95, 0.92) * (0.80 + 0.20 * part.light), inside * teeth)


def beard(canvas, f):
    """A beard from stubble to full, on the chin alone or up to the ears, and a moustache."""
    if f.beard <= 0.0 and f.moustache <= 0.0:
        return
    part = canvas.crop(*canvas.pose.place_head(0.0, 0.42), 0.72, 0.50)
    u, v, line = part.u, part.v, mouth_line(f)
    away = np.abs(u)
    distance, _, _ = head_outline(part, f)
    mouth_hole = ellipse(u, v, 0.0, line + 0.012 + 0.03 * f.mouth_open, 0.165 * f.mouth_width,
                         0.050 * f.lip_fullness + 0.05 * f.mouth_open)
    # The upper edge falls from the sideburns past the mouth's corner; a goatee's stays low and narrow.
    edge = mix(0.47, 0.36 - 5.0 * np.maximum(away - 0.20, 0.0) ** 2, f.beard_cover)
    side = away - mix(0.16, 0.70, f.beard_cover)
    shape = smooth_max(smooth_max(edge - v, side, 0.10), -mouth_hole, 0.02)
    # Length shows at the chin: beside the cheeks the beard stays on the face.
    longer = 0.075 * f.beard_length * smoothstep(0.25, 0.55, part.hy)
    outline = part.cover(distance - longer, 0.01 + 0.03 * f.beard_length)
    strands = np.sin(46.0 * u + 9.0 * np.sin(7.0 * v)) * np.sin(21.0 * v)
    hair = mix(f.hair_colour, f.brow_colour, 0.4) * (0.62 + 0.46 * part.light + 0.05 * strands)
    part.paint(hair, min(1.0, 1.15 * f.beard) * outline * part.cover(shape, 0.13 - 0.09 * f.beard))
    reach = 0.150 * f.mouth_width + 0.045
    s = u / reach
    lip = line - 0.060 - 0.25 * 0.085 * f.mouth_open
    stroke = np.abs(v - lip - (0.055 - 0.065 * f.smile) * s * s) - 0.040 * (1.0 - 0.55 * s * s)
    stroke = smooth_max(stroke, (np.abs(s) - 1.0) * reach, 0.02)
    part.paint(hair, min(1.0, 1.1 * f.moustache) * part.cover(stroke, 0.035))


# --- hair ------------------------------------------------------------------------------------------------------------


def hair_body(canvas, f):
    """The part of the picture that the hair may cover, and the hair's coordinates there."""
    top, bottom = -SKULL_TOP - f.hair_top - 0.08, f.hair_length + 0.04
    wide = (f.head_width + f.hair_side) * (1.0 + max(f.hair_flare, 0.0) * (bottom - BRAIN_CASE)) + 0.06
    middle, high, lean = 0.5 * (top + bottom), 0.5 * (bottom - top), abs(canvas.pose.tilt[1])
    part = canvas.crop(*canvas.pose.place_head(0.0, middle), wide + lean * high, high + lean * wide)
    return part, hair_field(part, f)


def hair_field(part, f):
    """The hair's own coordinates: q, distance, and the normal (nx, ny, nz) of its round body.

    q grows from 0 at the middle of the head to 1 at the outline of the hair: lines of equal q are the strands, which
    run over the dome of the head and then straight down.
    """
    x, y = part.hx + 0.10 * part.pose.turn[1], part.hy - BRAIN_CASE
    wide, high = f.head_width + f.hair_side, SKULL_TOP + BRAIN_CASE + f.hair_top
    below = positive(y)
    a = x / (wide * (1.0 + (f.hair_flare - 0.30 * f.hair_short) * below))
    b = (y - below) / (high * (1.0 + f.hair_lean * x))
    q = squircle(a, b, 0.28 - 0.23 * f.curl)
    distance = smooth_max((q - 1.0) * wide, y + BRAIN_CASE - f.hair_length + 0.10 * a * a, 0.10 + 0.2 * f.curl)
    if f.wave > 0.0:
        wave = f.wave * np.sin(10.5 * y + 0.8) * smoothstep(-0.1, 0.4, y)
        q, distance = q + 0.030 * wave, distance + 0.022 * wave
    if f.curl > 0.0:
        lumps = f.curl * np.sin(15.0 * x + 2.0 * np.sin(9.0 * y)) * np.sin(14.0 * y + 1.5 * np.sin(8.0 * x))
        distance, a, b = distance + 0.022 * lumps, a + 0.38 * lumps, b + 0.38 * lumps
    return SimpleNamespace(q=q, distance=distance, nx=a, ny=b - 0.10, nz=np.sqrt(positive(1.02 - q * q) + 0.04))


def hair_tone(f, field, strand):
    """The colour of hair: round shading, strands along the coordinate `strand`, and a band of shine over the dome."""
    lit = lambert(field.nx, field.ny, field.nz, f.lamp)
    wave = np.sin(27.0 * strand)
    # Its third harmonic, sin 3a = 3 sin a - 4 sin^3 a, adds finer strands without a second sine.
    fine = wave * (1.7 - 1.6 * wave * wave)
    smooth = 1.0 - 0.65 * f.curl
    ring = ridge(field.q - 0.74, 0.11) * clamp(0.35 + 0.9 * (field.nx * f.lamp[0] + field.ny * f.lamp[1]))
    shine = ring * (smooth * (0.22 + 0.10 * fine))
    shine = shine * mix(f.hair_colour, rgb(1.0, 0.93, 0.85), 0.45)
    return f.hair_colour * (0.42 + 0.70 * lit + 0.06 * smooth * fine) + shine


def hair_back(hair, f):
    """The hair behind head, neck and shoulders, in the shadow of the head."""
    if f.hair_density > 0.9:
        part, field = hair
        part.paint(f.hair_colour * rgb(0.57, 0.48, 0.45), part.cover(field.distance))


def bun(canvas, f):
    """A knot of hair above the head."""
    if f.bun > 0.0:
        cx, cy = -0.2 * canvas.pose.turn[1], -SKULL_TOP - f.hair_top
        part = canvas.crop(*canvas.pose.place_head(cx, cy), f.bun + 0.15, f.bun + 0.15)
        x, y = (part.hx - cx) / (1.2 * f.bun), (part.hy - cy) / f.bun
        q = length(x, y)
        lit = lambert(x, y, np.sqrt(positive(1.02 - q * q) + 0.04), f.lamp)
        twist = np.sin(9.0 * q + 3.0 * x)
        part.paint(f.hair_colour * (0.42 + 0.75 * lit + 0.06 * twist), part.cover((q - 1.0) * f.bun))


def hair_front(hair, f):
    """The hair around the face: the body of hair less an opening, whose upper edge is the hairline with its parting."""
    if f.hair_density <= 0.0:
        return
    part, field = hair
    u, v = part.u, part.v
    across = (u - f.part) / f.head_width
    away = np.abs(u)
    line = -f.hairline + f.sweep * across * across - f.recede * ridge(away - 0.26, 0.10)
    half = f.head_width * f.hair_opening + 0.16 * smoothstep(0.15, 0.9, v)
    half += 0.2 * f.hair_short * smoothstep(-0.1, 0.1, v)
    # Long hair hides the ears even where the face, turned aside, would leave them bare.
    side = np.maximum(away - half, np.abs(part.hx) - (0.95 + f.hair_short) * f.head_width)
    fan = 0.9 * (u - 1.6 * f.part) / (v + 1.25)
    line += 0.016 * f.hair_short * np.sin(27.0 * fan + 1.0)
    opening = smooth_max(line - v, side, mix(0.10, 0.08, f.hair_short))
    part.tint(SHADOW, 0.55 * part.cover(-opening - 0.03, 0.13) * part.cover(field.distance) * part.head)
    tone = hair_tone(f, field, mix(field.q - 0.12 * np.abs(across), fan, f.hair_short))
    edge = part.cover(-opening, 0.02 + 0.02 * f.hair_short + 0.25 * (1.0 - f.hair_density))
    part.paint(tone, f.hair_density * edge * part.cover(field.distance, 0.015))
    if f.bangs > 0.0:
        fringe(part, f, field)


def fringe(part, f, field):
    """Bangs: locks that fall from the crown over the forehead, their ends a little uneven."""
    u, v = part.u, part.v
    across = u / f.head_width
    fan = u / (v + 1.05)
    end = -0.42 + 0.27 * f.bangs + 0.10 * f.bangs_slant * across + 0.07 * across * across + 0.014 * np.sin(44.0 * fan)
    distance = smooth_max(smooth_max(v - end, field.distance, 0.02), np.abs(u) - f.head_width, 0.05)
    part.tint(SHADOW, 0.5 * part.cover(distance - 0.035, 0.08) * part.head)
    tone = hair_tone(f, field, 0.9 * fan) * (1.0 - 0.15 * smoothstep(-0.10, 0.0, v - end))
    part.paint(tone, part.cover(distance, 0.018))


# --- things worn -----------------------------------------------------------------------------------------------------


def glasses_arms(canvas, f):
    """The arms of the glasses, from the lenses to the ears; hair falls over them."""
    if f.glasses > 0.0:
        part = canvas.around(0.0, -0.03, 0.62, 0.08)
        arm = np.maximum(np.abs(part.v + 0.035) - 0.012, 0.212 + 0.15 * f.glasses - np.abs(part.u))
        part.paint(f.frame_colour * 0.85, part.cover(arm) * part.head)


def glasses(canvas, f):
    """Two framed lenses and the bridge between them; a tint makes them sunglasses."""
    if f.glasses <= 0.0:
        return
    lean = 0.045 * canvas.pose.turn[1]
    width, high = 0.168 * f.glasses, 0.135 * f.glasses * mix(0.80, 1.05, f.glasses_round)
    thick = mix(0.020, 0.009, f.glasses_gold)
    part = canvas.around(0.0, 0.02, 0.60, 0.24)
    u, v = part.u - lean, part.v - 0.015
    away = np.abs(u)
    x, y = (away - 0.212) / width, v / high
    # |x|^p + |y|^p = 1 goes from a circle (p = 2) to nearly a rectangle (p = 6).
    power = mix(6.0, 2.2, f.glasses_round)
    q = (np.abs(x) ** power + np.abs(y) ** power) ** (1.0 / power)
    distance = (q - 1.0) * min(width, high)
    part.tint(SHADOW, 0.20 * part.cover(distance - 0.02, 0.06) * part.head)
    lens = part.cover(distance)
    tint = mix(rgb(0.10, 0.09, 0.11), rgb(0.30, 0.20, 0.16), f.glasses_gold)
    part.paint(tint * (1.0 + 0.5 * (y + 0.5)), f.glasses_tint * lens * (0.95 - 0.12 * clamp(y)))
    glare = smoothstep(0.25, 0.0, np.abs(x + 0.75 * y + 0.35 - 0.5 * f.lamp[0]))
    part.paint(rgb(1.0, 1.0, 1.0), (0.07 + 0.13 * f.glasses_tint) * glare * lens)
    bridge = np.maximum(np.abs(v + 0.30 * high - 0.6 * u * u) - 0.8 * thick, away - 0.212 + 0.9 * width)
    part.paint(f.frame_colour * (0.75 + 0.5 * clamp(-y)), part.cover(np.minimum(np.abs(distance) - thick, bridge)))


def hat(canvas, f):
    """A hat: 1 a knitted cap, 2 a hat with a brim."""
    if f.hat == 1.0:
        knitted_cap(canvas, f)
    elif f.hat == 2.0:
        brimmed_hat(canvas, f)


def knitted_cap(canvas, f):
    """A dome of wool with a turned-up band above the brows."""
    x, y = canvas.hx + 0.04 * canvas.pose.turn[1], canvas.hy - BRAIN_CASE
    wide, high = f.head_width + 0.055, SKULL_TOP + BRAIN_CASE + 0.17
    a, b = x / wide, y / high
    q = np.sqrt(a * a + b * b)
    rim = -0.31 + 0.10 * a * a + 0.35 * canvas.pose.nod[1]
    below = canvas.hy - rim
    dome = smooth_max((q - 1.0) * wide, below, 0.02)
    band = smooth_max(np.abs(below + 0.06) - 0.075, (np.abs(a) - 1.04) * wide, 0.04)
    lit = lambert(a, b, np.sqrt(positive(1.01 - q * q) + 0.05), f.lamp)
    ribs = 0.045 * np.sin(30.0 * np.arcsin(np.clip(a, -0.98, 0.98)))
    canvas.tint(SHADOW, 0.55 * canvas.cover(below - 0.03, 0.12) * canvas.head)
    canvas.paint(f.hat_colour * (0.46 + 0.70 * lit + ribs), canvas.cover(dome))
    canvas.tint(rgb(0.6, 0.6, 0.6), 0.6 * canvas.cover(band - 0.02, 0.05) * canvas.cover(dome))
    canvas.paint(mix(f.hat_colour, 1.0, 0.08) * (0.50 + 0.66 * lit + 1.3 * ribs), canvas.cover(band))


def brimmed_hat(canvas, f):
    """A felt hat: a crown with a ribbon over a wide brim that shades the forehead."""
    x, y = canvas.hx + 0.04 * canvas.pose.turn[1], canvas.hy + 0.36 - 0.35 * canvas.pose.nod[1]
    wide = f.head_width + 0.04
    curve = y - 0.16 * x * x
    brim = ellipse(x, curve, 0.0, 0.0, wide + 0.34, 0.085)
    crown = smooth_max(np.abs(x) - wide * (1.0 + 0.22 * y), -y - 0.44 + 0.04 * np.cos(6.0 * x), 0.12)
    crown = smooth_max(crown, y, 0.02)
    a = np.clip(x / wide, -1.0, 1.0)
    lit = lambert(0.9 * a, -0.25, np.sqrt(1.04 - a * a), f.lamp)
    canvas.tint(SHADOW, 0.60 * canvas.cover(curve - 0.10, 0.22) * canvas.head)
    canvas.paint(f.hat_colour * (0.46 + 0.62 * lit), canvas.cover(crown))
    ribbon = np.maximum(crown, -0.135 - y)
    canvas.paint(f.hat_colour * (0.20 + 0.30 * lit), canvas.cover(ribbon))
    canvas.paint(f.hat_colour * (0.56 + 0.40 * lambert(0.4 * x, -0.6 + 4.0 * curve, 0.6, f.lamp)), canvas.cover(brim))


# --- the whole picture -----------------------------------------------------------------------------------------------


def draw_window(factors, window, height, width):
    """Paint a window (left, top, right, bottom) of the picture: uint8 (height, width, 3).

    Small pictures are painted with at least 128 pixels a side, then averaged over blocks, since the highlights in the
    eyes are finer than a pixel of 64: so a picture of size 64 is exactly the reduced one of size 128.
    """
    f = sitter(factors)
    finer = math.ceil(128 / min(height, width))
    canvas = Canvas.blank(f.pose, window, height * finer, width * finer)
    background(canvas, f)
    bun(canvas, f)
    hair = hair_body(canvas, f)
    hair_back(hair, f)
    neck(canvas, f)
    clothes(canvas, f)
    ears(canvas, f)
    head(canvas, f)
    beard(canvas, f)
    glasses_arms(canvas, f)
    hair_front(hair, f)
    glasses(canvas, f)
    hat(canvas, f)
    fine = range(finer)
    blocks = sum(canvas.colour[:, row::finer, column::finer] for row in fine for column in fine)
    return (np.clip(blocks * (255.0 / finer**2) + 0.5, 0.0, 255.0)).astype(np.uint8).transpose(1, 2, 0)


def draw_face(factors, size):
    """Paint a face: uint8 (size, size, 3)."""
    return draw_window(factors, SQUARE, size, size)
