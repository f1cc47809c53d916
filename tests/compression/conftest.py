"""What all tests of this folder share."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def few_layers(shallow_networks):
    """Networks of torchvision have few layers."""
