"""One thread a worker (the suite runs on several workers) and one way of drawing examples."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


#: Files and folders whose every test exports networks, starts processes, or compiles: not for `make quick`.
_SLOW = (
    *("around", "conformance", "examples"),
    *("export/integer", "export/test_capture.py", "export/test_debug.py", "export/test_finn_profile.py"),
    *("export/test_finn_rules.py", "export/test_foreign.py", "export/test_inputs.py", "export/test_kinds.py"),
    *("export/test_lower_dpu.py", "export/test_lower_finn.py", "export/test_lower_qop.py", "export/test_minifloats.py"),
    *("export/test_saturation.py", "export/test_sub_byte_types.py", "export/test_targets.py"),
    *("export/test_torchscript.py", "export/test_untouched.py", "export/test_verify.py", "export/test_verify_qonnx.py"),
    *("export/test_weight_layers.py", "graph/test_check_scales.py", "graph/test_insert_shared_quantizers.py"),
    *("loss/test_over_ranks.py", "nn/recurrent/test_around.py", "nn/recurrent/test_collection.py"),
    *("nn/test_attention_around.py", "nn/test_layers_without_weight_around.py", "nn/test_weight_layers_state.py"),
)


def pytest_collection_modifyitems(items):
    root = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(root):
            name = item.path.relative_to(root).as_posix()
            if any(name == slow or name.startswith(f"{slow}/") for slow in _SLOW):
                item.add_marker(pytest.mark.slow)
