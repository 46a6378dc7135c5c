"""Pictures of matplotlib inside a page."""

import base64
import io

from matplotlib.figure import Figure


def as_png(picture: Figure) -> str:
    """A picture as a ``data:`` URL.

    PNG rather than SVG: traces of thousands of points are larger as paths, and fonts are the
    reader's own there.

    Args:
        picture: A figure of matplotlib.

    Returns:
        The URL.
    """
    file = io.BytesIO()
    picture.savefig(file, format="png", dpi=130)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
