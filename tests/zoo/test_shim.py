"""The two operators written out for torchvision."""

import pytest
import torch

from tests.tools import normal
from tests.zoo.shim import nms, roi_align

BOXES = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 0.0, 5.0, 4.0], [8.0, 8.0, 9.0, 9.0]])


@pytest.mark.parametrize(("threshold", "kept"), [(0.5, [1, 2]), (0.7, [1, 0, 2])])  # the first two share 12 of 20
def test_of_overlapping_boxes_the_best_is_kept(threshold, kept):
    assert nms(BOXES, torch.tensor([0.5, 0.9, 0.3]), threshold).tolist() == kept


def test_a_box_of_a_slope_holds_the_slopes_values_at_the_middle_of_its_parts():
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = torch.stack([rows, 3 * columns]).expand(2, 2, 16, 16)
    rois = torch.tensor([[1.0, 4.0, 4.0, 12.0, 8.0], [0.0, 8.0, 8.0, 24.0, 16.0]])
    found = roi_align(x, rois, 0.5, 2, 4, 2, False)
    assert found.shape == (2, 2, 2, 4)
    # the first box, halved, spans 2..4 in the rows and 2..6 in the columns
    assert torch.allclose(found[0, 0], torch.tensor([[2.5], [3.5]]).expand(2, 4))
    assert torch.allclose(found[0, 1], 3 * torch.tensor([2.5, 3.5, 4.5, 5.5]).expand(2, 4))


def test_the_boxes_are_taken_from_their_own_image_and_have_a_gradient():
    x = normal(2, 3, 8, 8).requires_grad_()
    roi_align(x, torch.tensor([[1.0, 0.0, 0.0, 7.0, 7.0]]), 1.0, 2, 2, 2, False).sum().backward()
    assert not x.grad[0].any()
    assert x.grad[1].any()
