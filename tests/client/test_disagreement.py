"""How many images of a share are kept."""

import pytest

from coserve_client.disagreement import Quota


@pytest.mark.parametrize(("percent", "images", "kept"), [(7, 100, 7), (7, 101, 8), (1.1, 1000, 11)])
def test_a_share_is_rounded_up_to_whole_images(percent: float, images: int, kept: int) -> None:
    assert Quota(share=percent / 100).of(images) == kept


def test_at_least_one_image_is_kept_and_no_more_than_there_are() -> None:
    assert Quota(share=1e-9).of(5) == 1
    assert Quota(share=0.5).of(0) == Quota(number=3).of(0) == 0
    assert Quota(number=3).of(2) == 2
