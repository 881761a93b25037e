"""Torch's reduced-precision flags are off inside the context and restored after it."""

import pytest
import torch

from specdec.model.full_precision import FLAGS, _flags, _set, full_precision_sums

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SETTINGS = [True, False, (False, False)]


@pytest.fixture(autouse=True)
def flags():
    before = _flags()
    yield
    _set(before)


def setting(flag):
    return getattr(torch.backends.cuda.matmul, flag)


@pytest.mark.parametrize("value", SETTINGS, ids=str)
@pytest.mark.parametrize("flag", FLAGS)
def test_reduced_precision_flags_are_off_inside_and_restored_after(flag, value):
    setattr(torch.backends.cuda.matmul, flag, value)
    before = _flags()
    with full_precision_sums(CUDA):
        assert not any(setting(name) for name in FLAGS)
        assert {name: cuts for name, (_, cuts) in _flags().items()} == {
            name: cuts for name, (_, cuts) in before.items()
        }
    assert _flags() == before


def test_flags_are_restored_after_an_error():
    _set(dict.fromkeys(FLAGS, (True, True)))
    before = _flags()
    with pytest.raises(RuntimeError, match="out of memory"), full_precision_sums(CUDA):
        raise RuntimeError("out of memory")
    assert _flags() == before


def test_nested_contexts_keep_flags_off_until_the_outer_exits():
    _set(dict.fromkeys(FLAGS, (True, True)))
    with full_precision_sums(CUDA):
        with full_precision_sums(CUDA):
            pass
        assert not any(setting(name) for name in FLAGS)
    assert all(setting(name) for name in FLAGS)


def test_flags_are_untouched_on_cpu():
    _set(dict.fromkeys(FLAGS, (True, True)))
    with full_precision_sums(CPU):
        assert all(setting(name) for name in FLAGS)
