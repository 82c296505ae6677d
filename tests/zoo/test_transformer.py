"""A sample of transformers' architectures under a whole check; all of them: make zoo."""

import pytest

from tests.zoo import transformer
from tests.zoo.examine import examine

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


@pytest.mark.parametrize("name", transformer.SAMPLE)
def test_an_architecture_of_transformers_is_understood_and_left_as_it_was(name):
    pytest.importorskip("transformers", reason="transformers is not installed: make zoo installs it")
    result = examine(transformer.entry(name))
    assert not result.error
    assert not result.left
    assert result.stages > 5
    assert result.reached == 1, "every parameter is seen at work"
    assert result.understood >= 0.99 * result.operations > 10, result.unknown


def test_there_are_at_least_twenty_architectures_each_once():
    names = [entry.name for entry in transformer.entries()]
    assert len(names) == len(set(names)) >= 20
    assert set(transformer.SAMPLE) < set(names)
