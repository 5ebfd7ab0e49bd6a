"""Recurrent layers: cells of gates, stacked in layers and directions.

:mod:`layers` holds the classes that users build and :mod:`layer` their body, :mod:`cells` the formulas and :mod:`gate`
the two weights and the sum of a gate; :mod:`collection` says what counts as a step of statistics, :mod:`layout` how
inputs lie, :mod:`torch_layout` where torch keeps what a gate holds.
"""

from brevitas.nn.recurrent.layer import QuantRecurrentLayer
from brevitas.nn.recurrent.layers import QuantGRU, QuantLSTM, QuantRNN

__all__ = ["QuantGRU", "QuantLSTM", "QuantRNN", "QuantRecurrentLayer"]
