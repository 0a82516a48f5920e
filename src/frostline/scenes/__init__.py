"""Procedural scenes: one seeded description, drawn by the renderer a system needs.

``describe`` says what is there (objects, colours, sizes, positions, camera, caption); ``render_flat`` draws it in 2-D.
``render_rgbd`` draws rooms of its own for a colour and a depth camera, ``render_solids`` single solids from all round,
``render_things`` one large thing on a plain ground.
Everything about scene ``i`` is a function of ``(seed, split, i)`` alone: data sets need no files, and neither
the order nor the number of loader processes changes a pixel.
"""

from frostline.scenes.description import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    Scenes,
    Split,
    boxes,
    captions,
    describe,
    digest,
)
from frostline.scenes.flat import render_flat
from frostline.scenes.rgbd import MAX_DEPTH_METRES, RGBD_CLASSES, RGBD_LIGHTS, RGBD_SHAPES, render_rgbd
from frostline.scenes.solids import (
    SOLID_CAMERA_RADIUS,
    SOLID_ELEVATIONS_DEGREES,
    SOLID_FOV_DEGREES,
    SOLIDS,
    Solids,
    render_solids,
)
from frostline.scenes.things import (
    NAMED_THINGS,
    NAMELESS_THINGS,
    THING_BACKGROUNDS,
    THING_COLOURS,
    THING_WORD,
    THINGS,
    Things,
    render_things,
)

__all__ = [
    "COLOURS",
    "MAX_DEPTH_METRES",
    "NAMED_THINGS",
    "NAMELESS_THINGS",
    "RELATIONS",
    "RGBD_CLASSES",
    "RGBD_LIGHTS",
    "RGBD_SHAPES",
    "SHAPES",
    "SIZES",
    "SOLIDS",
    "SOLID_CAMERA_RADIUS",
    "SOLID_ELEVATIONS_DEGREES",
    "SOLID_FOV_DEGREES",
    "SPLITS",
    "THINGS",
    "THING_BACKGROUNDS",
    "THING_COLOURS",
    "THING_WORD",
    "Scenes",
    "Solids",
    "Split",
    "Things",
    "boxes",
    "captions",
    "describe",
    "digest",
    "render_flat",
    "render_rgbd",
    "render_solids",
    "render_things",
]
