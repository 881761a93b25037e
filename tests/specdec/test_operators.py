"""What a round asks of torch on a CPU, in operators: small models spend much of their time between them."""

import pytest
import torch

import every_drafter
from counted_operators import Counted
from specdec.load import load_target
from specdec.session import Session
from tiny import random_prompt, tiny_model

# As counted with three layers in few operators; with the library's a plain round took 371.
MOST = {
    "plain": 246,
    "lookup": 305,
    "redrafter": 617,
    "kangaroo": 989,
    "eagle3": 1082,
    "medusa": 501,
}


@pytest.mark.parametrize("name", MOST)
def test_operators_per_round_do_not_exceed_the_recorded_maximum(name):
    target = load_target(tiny_model.__wrapped__("llama", dtype=torch.float32))
    assert all(target.lean.layers)
    session = Session(target, getattr(every_drafter, name)(target), max_nodes=8)
    stream = session.stream([random_prompt(9, 1)], max_new_tokens=30)
    next(stream), next(stream)
    with Counted() as round_:
        next(stream)
    assert round_.count <= MOST[name]
