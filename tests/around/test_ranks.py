"""Training on two ranks: statistics, DistributedDataParallel, FSDP2. The checks are in programs/."""

import pytest
from ranks import checks_of

import brevitas.function.ranks as over
from brevitas.errors import QuantConfigError

PROGRAMS = [
    "statistics_over_ranks",
    "distributed_training",
    "recurrent_training",
    "sharded_training",
    "compiled_statistics_over_ranks",
    "compiled_distributed_training",
]
SLOW = {program for program in PROGRAMS if program.startswith("compiled")}


def cases():
    for program in PROGRAMS:
        for check in checks_of(program):
            marks = [pytest.mark.slow] if program in SLOW else []
            yield pytest.param(program, check, id=f"{program}-{check.removeprefix('check_')}", marks=marks)


@pytest.mark.parametrize(("program", "check"), list(cases()))
def test_on_two_ranks(on_two_ranks, program, check):
    on_two_ranks(program, check)


@pytest.mark.slow
@pytest.mark.parametrize("check", checks_of("distributed_training"))
def test_scripted_modules_on_two_ranks(on_two_ranks, check):
    on_two_ranks("distributed_training", check, BREVITAS_JIT="1")


def test_nothing_is_gathered_where_nothing_is_distributed():
    assert over.ranks() == 1
    with over.statistics_over(None):
        assert over.ranks() == 1
    with pytest.raises(QuantConfigError, match="'all' is no group of ranks"):
        over.set_statistics_group("all")
    assert over.ranks() == 1
