"""Reference models by name, each built from a recipe in YAML, and the real data that they are trained on.

>>> import quant_zoo
>>> quant_zoo.list("*")
['lenet']
"""

import brevitas

if "explain" not in getattr(brevitas, "__all__", ()):
    raise ImportError(
        f"quant_zoo belongs to this project's brevitas, but 'import brevitas' finds another one in "
        f"{[*brevitas.__path__]}: pip uninstall brevitas, then pip install -e . in the project's folder"
    )

from quant_zoo.catalogue import UnknownModelError, load, load_float, quantizers, recipe
from quant_zoo.catalogue import list_models as list
from quant_zoo.data import DataError, Digits, SpokenDigits, mnist_digits, spoken_digits
from quant_zoo.recipe_format import Recipe, RecipeError

__all__ = [
    "DataError",
    "Digits",
    "Recipe",
    "RecipeError",
    "SpokenDigits",
    "UnknownModelError",
    "list",
    "load",
    "load_float",
    "mnist_digits",
    "quantizers",
    "recipe",
    "spoken_digits",
]
