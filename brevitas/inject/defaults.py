"""Every public name of ``brevitas.quant.scaled_int`` and ``brevitas.quant.base``, under the path that older code imports."""

from brevitas.quant.base import *  # noqa: F403
from brevitas.quant.scaled_int import *  # noqa: F403
