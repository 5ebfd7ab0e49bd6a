"""Losses under DistributedDataParallel, on two ranks; the checks are in tests/around/programs."""

from ranks import start


def test_widths_move_as_in_one_process(tmp_path):
    said = start("losses_over_ranks", tmp_path)
    assert said == {"check_widths_move_as_in_one_process": ["ok", "ok"]}, said
