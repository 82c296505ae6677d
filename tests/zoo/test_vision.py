"""A sample of torchvision's models under a whole check; all of them: make zoo."""

import pytest

from tests.zoo import vision
from tests.zoo.examine import examine

pytestmark = pytest.mark.filterwarnings("ignore")  # torchvision's own


@pytest.fixture(scope="module", autouse=True)
def torchvision():
    pytest.importorskip("PIL", reason="torchvision is not installed: pip install '.[test]' has it")
    try:
        return vision.import_torchvision()
    except ImportError:
        pytest.skip("torchvision is not installed: pip install '.[test]' has it")


@pytest.mark.parametrize("name", vision.SAMPLE)
def test_a_model_of_torchvision_is_understood_and_left_as_it_was(name):
    result = examine(vision.entry(name))
    assert not result.error
    assert not result.left
    assert result.stages > 10
    assert result.reached == 1, "every parameter is seen at work"
    assert result.understood >= 0.99 * result.operations > 10, result.unknown


def test_the_list_is_whole(torchvision):
    assert {entry.name for entry in vision.entries()} == set(torchvision.models.list_models())
    assert len(vision.SAMPLE) == len(set(vision.SAMPLE)) == 10
