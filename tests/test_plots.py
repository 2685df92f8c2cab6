"""Every method has a look of its own, in colour and in black and white."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.markers import MarkerStyle

import minprune as mp
from minprune.plots import LOOKS

# What a viewer without red or without green cones sees of linear RGB (Machado, Oliveira and Fernandes 2009, table 1).
EYES = {
    "full colour vision": np.eye(3),
    "no red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, eye):
    """CIE L*a*b* of a colour as that eye sees it: distances below about 10 are hard to tell apart in small marks."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(eye @ linear, 0, 1) / XYZ.sum(1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_method_has_a_look():
    assert set(mp.METHODS) <= set(LOOKS)


def test_no_two_share_a_colour_a_marker_or_a_hatch():
    for part in ("color", "marker", "hatch"):
        values = [getattr(look, part) for look in LOOKS.values()]
        assert len(set(values)) == len(values), part
    for look in LOOKS.values():
        MarkerStyle(look.marker)  # raises for one that matplotlib does not have
        assert set(look.hatch) <= set("/\\|-+xoO.*")


@pytest.mark.parametrize("eye", EYES)
def test_no_two_colours_look_alike(eye):
    for (name, one), (other, two) in itertools.combinations(LOOKS.items(), 2):
        assert np.linalg.norm(lab(one.color, EYES[eye]) - lab(two.color, EYES[eye])) > 12, (name, other)
