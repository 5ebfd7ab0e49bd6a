"""A statistic and a granularity that do not go together are refused when the layer is built."""

import pytest
import torch

from brevitas.errors import QuantConfigError
from brevitas.nn import QuantConv2d, QuantIdentity
from brevitas.quant import Int8WeightPerChannelFloat, MXInt8Act, MXInt8Weight


@pytest.mark.parametrize(
    "build",
    [
        lambda: QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannelFloat, weight_scaling_stats_op="max_ave"),
        lambda: QuantIdentity(
            scaling_per_output_channel=True, per_channel_broadcastable_shape=(1, 4, 1, 1), scaling_stats_op="MAX_AVE"
        ),
        lambda: QuantConv2d(32, 4, 3, weight_quant=MXInt8Weight, weight_scaling_stats_op="max_ave"),
        lambda: QuantIdentity(act_quant=MXInt8Act, scaling_stats_op="max_ave"),
    ],
    ids=["weight", "act", "weight groups", "act groups"],
)
def test_average_over_channels_has_no_scale_per_part(build):
    with pytest.raises(QuantConfigError, match="MAX_AVE averages over the channels.*or one scale per tensor"):
        build()


def test_average_over_channels_per_tensor():
    layer = QuantConv2d(3, 2, 1, weight_scaling_stats_op="max_ave", bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0, 0.5], [0.25, 1.0, 0.0]]).reshape(2, 3, 1, 1))
    # Mean of 3 and 1, over 127 codes.
    torch.testing.assert_close(layer.quant_weight_scale(), torch.tensor(2.0 / 127))
