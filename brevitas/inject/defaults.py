"""The public names of ``brevitas.quant.scaled_int`` and ``brevitas.quant.base``, where older code imports them from."""

from brevitas.quant.base import *  # noqa: F403
from brevitas.quant.scaled_int import *  # noqa: F403
