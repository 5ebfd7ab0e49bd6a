"""What spec/quantizers.md 5, 6 and 11 say of each preset, written out by hand; nothing is read from the presets."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Weight:
    """An integer weight; ``scaling``: STATS (of the weight, at every step), LEARNED (from the statistic) or CONST."""

    signed: bool = True
    narrow: bool = True
    per: str = "tensor"
    restriction: str = "FP"
    statistic: str = "MAX"
    shifted: bool = False
    scaling: str = "STATS"
    search: bool = False
    constant: float | None = None

    @property
    def passing(self):
        """TensorClampSte, quantizers.md 4.3."""
        return self.scaling != "LEARNED"


@dataclass(frozen=True)
class Act:
    """An integer activation; ``scaling``: LEARNED (from runtime statistics), RANGE (from min_val, max_val) or CONST."""

    signed: bool = True
    narrow: bool = False
    restriction: str = "FP"
    shifted: bool = False
    scaling: str = "LEARNED"
    search: bool = False


FLOAT = Weight()
FIXED = Weight(restriction="POWER_OF_TWO")
SHIFTED = Weight(signed=False, narrow=False, statistic="MIN_MAX", shifted=True)


def channel(preset):
    return replace(preset, per="channel")


def searched(preset):
    return replace(preset, scaling="LEARNED", search=True)


WEIGHTS = {
    "Int8WeightPerTensorFloat": FLOAT,
    "Int8WeightPerChannelFloat": channel(FLOAT),
    "Int8WeightPerTensorFixedPoint": FIXED,
    "Int8WeightPerChannelFixedPoint": channel(FIXED),
    "ShiftedUint8WeightPerTensorFloat": SHIFTED,
    "ShiftedUint8WeightPerChannelFloat": channel(SHIFTED),
    "SignedTernaryWeightPerTensorConst": Weight(scaling="CONST", constant=0.1),
    "Int8WeightPerTensorFloatMSE": searched(FLOAT),
    "Int8WeightPerChannelFloatMSE": searched(channel(FLOAT)),
    "Int8WeightPerTensorFixedPointMSE": searched(FIXED),
    "Int8WeightPerChannelFixedPointMSE": searched(channel(FIXED)),
    "ShiftedUint8WeightPerTensorFloatMSE": searched(SHIFTED),
    "ShiftedUint8WeightPerChannelFloatMSE": searched(channel(SHIFTED)),
}
MX_WEIGHTS = {
    "MXInt8Weight": Weight(per="group", restriction="MX"),
    "MXInt8WeightMSE": searched(Weight(per="group", restriction="MX")),
    "ShiftedMXUInt8Weight": replace(SHIFTED, per="group", restriction="MX"),
}
ACTS = {
    "Int8ActPerTensorFloat": Act(),
    "Uint8ActPerTensorFloat": Act(signed=False),
    "Int8ActPerTensorFixedPoint": Act(restriction="POWER_OF_TWO"),
    "Uint8ActPerTensorFixedPoint": Act(signed=False, restriction="POWER_OF_TWO"),
    "ShiftedUint8ActPerTensorFloat": Act(signed=False, shifted=True),
    "ShiftedUint8ActPerTensorFixedPoint": Act(signed=False, shifted=True, restriction="POWER_OF_TWO"),
}
ACTS |= {f"{name}MSE": replace(act, search=True) for name, act in ACTS.items()}
RANGE_ACTS = {
    "Int8ActPerTensorFloatMinMaxInit": Act(scaling="RANGE"),
    "Uint8ActPerTensorFloatMaxInit": Act(scaling="RANGE", signed=False),
    "Int8ActPerTensorFixedPointMinMaxInit": Act(scaling="RANGE", restriction="POWER_OF_TWO"),
    "Uint8ActPerTensorFixedPointMaxInit": Act(scaling="RANGE", restriction="POWER_OF_TWO", signed=False),
    "SignedTernaryActPerTensorConst": Act(scaling="CONST", narrow=True),
}
MX_ACTS = {"MXInt8Act": Act(narrow=True, scaling="STATS", restriction="MX")}
BINARY = ("SignedBinaryWeightPerTensorConst", "SignedBinaryActPerTensorConst")
DECOUPLED = {
    # preset: (restriction, granularity)
    "Int4WeightPerTensorFloatDecoupled": ("FP", "tensor"),
    "Int4WeightPerTensorFixedPointDecoupled": ("POWER_OF_TWO", "tensor"),
    "Int8WeightPerChannelFloatDecoupled": ("FP", "channel"),
}
NORMALISED = {
    # preset: (norm, restriction of the step)
    "Int8WeightNormL2PerChannelFixedPoint": ("L2", "POWER_OF_TWO"),
    "Int8AccumulatorAwareWeightQuant": ("A2Q", "LOG_FP"),
    "Int8AccumulatorAwareZeroCenterWeightQuant": ("A2Q+", "LOG_FP"),
}
BIASES = {"IntBias": None, "Int8Bias": 8, "Int16Bias": 16, "Int24Bias": 24, "Int32Bias": 32}
INTERNAL_BIASES = {
    "Int8BiasPerTensorFloatInternalScaling": "FP",
    "Int8BiasPerTensorFixedPointInternalScaling": "POWER_OF_TWO",
}
TRUNCATIONS = {"TruncTo8bit": "FLOOR", "RoundTo8bit": "ROUND"}
OFF = ("NoneWeightQuant", "NoneActQuant", "NoneBiasQuant", "NoneTruncQuant", "NoneClampQuant")


@dataclass(frozen=True)
class Format:
    """A minifloat: bias, and which mantissas under the largest exponent are no numbers."""

    exponent: int
    mantissa: int
    family: str = ""

    @property
    def bias(self):
        return 2 ** (self.exponent - 1) - (self.family != "FNUZ")

    @property
    def infinities(self):
        return ("00",) if self.family == "OCP" and (self.exponent, self.mantissa) == (5, 2) else ()

    @property
    def nans(self):
        if self.family != "OCP":
            return ()
        return {(4, 3): ("111",), (5, 2): ("01", "10", "11")}.get((self.exponent, self.mantissa), ())

    def numbers(self):
        """All finite numbers >= 0, in order, decoded from their codes; index = code."""
        found = []
        for code in range(2 ** (self.exponent + self.mantissa)):
            exponent, mantissa = divmod(code, 2**self.mantissa)
            bits = format(mantissa, f"0{self.mantissa}b")
            if exponent == 2**self.exponent - 1 and bits in self.infinities + self.nans:
                continue
            if exponent == 0:
                found.append(mantissa * 2.0 ** (1 - self.bias - self.mantissa))
            else:
                found.append((1 + mantissa / 2**self.mantissa) * 2.0 ** (exponent - self.bias))
        return torch.tensor(found, dtype=torch.float64)


WIDTHS = [(4, 3), (5, 2), (3, 2), (2, 3), (2, 1)]  # of the generic presets: fp8, fp6 and fp4
SUFFIXES = {
    # suffix: (role, granularity or None without a scale, search)
    "Weight": ("weight", None, False),
    "WeightPerTensorFloat": ("weight", "tensor", False),
    "WeightPerChannelFloat": ("weight", "channel", False),
    "WeightPerTensorFloatMSE": ("weight", "tensor", True),
    "WeightPerChannelFloatMSE": ("weight", "channel", True),
    "Act": ("act", None, False),
    "ActPerTensorFloat": ("act", "tensor", False),
    "ActPerChannelFloat2d": ("act", "channel", False),
    "ActPerTensorFloatMSE": ("act", "tensor", True),
}
MINIFLOATS = {}
for _suffix, (_role, _per, _search) in SUFFIXES.items():
    for _family in ("", "OCP", "FNUZ"):
        for _widths in WIDTHS[:2]:
            _name = f"Fp8e{_widths[0]}m{_widths[1]}{_family}{_suffix}"
            MINIFLOATS[_name] = (_role, _per, _search, _family, [_widths])
        if _family:
            MINIFLOATS[f"Fp{_family}{_suffix}"] = (_role, _per, _search, _family, WIDTHS)
MX_FLOATS = {
    # preset: (role, search)
    "MXFloat8e4m3Weight": ("weight", False),
    "MXFloat8e4m3WeightMSE": ("weight", True),
    "MXFloat8e4m3Act": ("act", False),
}
