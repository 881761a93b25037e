"""The default model, loaded once in each way."""

import pytest
import torch

from specdec.loading import load_target


@pytest.fixture(scope="session")
def target32():
    return load_target(dtype=torch.float32)


@pytest.fixture(scope="session")
def exact16():
    try:
        return load_target(dtype=torch.bfloat16, exact=True)
    except ValueError as error:
        if not str(error).startswith("exact:"):
            raise
        pytest.skip(f"this machine cannot: {error}")
