"""Readers of chart files: texts, groups and images of an SVG, and the pixels of a PNG.

Matplotlib draws texts as paths, each after a comment with its characters.
"""

import base64
import io
import re
from xml.etree import ElementTree as ET

from PIL import Image

_SVG = "{http://www.w3.org/2000/svg}"


def texts(document):
    """Return all texts in drawing order."""
    ET.fromstring(document)  # raises unless the XML is valid
    return re.findall(r"<!-- (.*?) -->", document.decode(), re.DOTALL)


def parts(document, name):
    """Return the ids of the groups of a kind: "axes", "patch" or "line2d"."""
    tree = ET.fromstring(document)
    groups = (group.get("id", "") for group in tree.iter(f"{_SVG}g"))
    return [group for group in groups if re.fullmatch(rf"{name}_\d+", group)]


def styles(document):
    """Return all style attributes as one string."""
    tree = ET.fromstring(document)
    return " ".join(element.get("style", "") for element in tree.iter())


def size(document):
    """Return the width and height in points."""
    tree = ET.fromstring(document)
    return tuple(float(tree.get(name).removesuffix("pt")) for name in ("width", "height"))


def layer(document):
    """Return the only embedded raster image."""
    (data,) = re.findall(r"data:image/\w+;base64,([^\"]+)", document.decode())
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")


def open_png(png):
    """Return the RGB image of a PNG without metadata beyond its resolution."""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert set(image.info) <= {"dpi"}  # no software name or date, so that bytes are reproducible
    return image.convert("RGB")
