"""Real data for the experiments: embedded digits, image files, OpenML."""

from trebuchet.data.digits import load_digits01
from trebuchet.data.images import IMAGE_SETS, load_images
from trebuchet.data.two_class import TwoClassData

__all__ = ["IMAGE_SETS", "TwoClassData", "load_digits01", "load_images"]
