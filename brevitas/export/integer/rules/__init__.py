"""What each operator of the canonical graph becomes: one function each, ``(builder, node, values) -> value``."""

from __future__ import annotations

from brevitas.export.integer.builder import Rule
from brevitas.export.integer.rules import elementwise, moves, pools, products, quantizers
from brevitas.export.integer.rules.moves import evaluated

__all__ = ["RULES", "evaluated"]

RULES: dict[tuple[str, str], Rule] = {
    **quantizers.RULES,
    **products.RULES,
    **elementwise.RULES,
    **pools.RULES,
    **moves.RULES,
}
