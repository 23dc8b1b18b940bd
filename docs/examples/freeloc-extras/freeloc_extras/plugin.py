"""What freeloc asks this package for."""

import freeloc
from freeloc_extras.attended_distance import AttendedDistance
from freeloc_extras.near_and_anchors import METHOD
from freeloc_extras.tiles import TILES


@freeloc.hookimpl
def freeloc_backends():
    """The backend tiles."""
    return [TILES]


@freeloc.hookimpl
def freeloc_methods():
    """The method near-and-anchors."""
    return [METHOD]


@freeloc.hookimpl
def freeloc_depths():
    """The depth attended-distance."""
    return [AttendedDistance]
