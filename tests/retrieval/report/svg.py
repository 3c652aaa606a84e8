"""Read texts, parts and layers of SVG charts (texts are paths with a comment)."""

import base64
import io
import re
from xml.etree import ElementTree as ET

from PIL import Image

_SVG = "{http://www.w3.org/2000/svg}"


def texts(document):
    """Every text that is drawn, in order."""
    ET.fromstring(document)  # it is whole XML
    return re.findall(r"<!-- (.*?) -->", document.decode(), re.DOTALL)


def parts(document, name):
    """The groups whose id begins so: "axes", "patch", "line2d"."""
    tree = ET.fromstring(document)
    groups = (group.get("id", "") for group in tree.iter(f"{_SVG}g"))
    return [group for group in groups if re.fullmatch(rf"{name}_\d+", group)]


def styles(document):
    """All style attributes, as one text."""
    tree = ET.fromstring(document)
    return " ".join(element.get("style", "") for element in tree.iter())


def size(document):
    """Width and height in points."""
    tree = ET.fromstring(document)
    return tuple(float(tree.get(name).removesuffix("pt")) for name in ("width", "height"))


def layer(document):
    """The one layer of pixels in it."""
    (data,) = re.findall(r"data:image/\w+;base64,([^\"]+)", document.decode())
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")


def opened(png):
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert set(image.info) <= {"dpi"}  # neither software nor a date
    return image.convert("RGB")
