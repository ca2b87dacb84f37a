"""What an image may cost before its worker has counted it."""

import pytest

from services.gateway.requests import image_tokens
from shared.api.generation import ImageDetail, ImagePart
from tests.services.gateway.images.pictures import png


@pytest.mark.parametrize(
    ("width", "height", "detail", "likely", "most"),
    [
        pytest.param(2, 2, ImageDetail.AUTO, 272, 6420, id="tiny: tiles of a fixed size"),
        pytest.param(640, 480, ImageDetail.AUTO, 418, 6420, id="small"),
        pytest.param(1568, 1568, ImageDetail.AUTO, 3152, 12672, id="the largest that a model sees"),
        pytest.param(6000, 6000, ImageDetail.HIGH, 3152, 12672, id="reduced to that"),
        pytest.param(6000, 6000, ImageDetail.LOW, 358, 6420, id="low detail"),
        pytest.param(16384, 1, ImageDetail.AUTO, 272, 6420, id="a line"),
    ],
)
def test_the_bound_and_the_estimate(width: int, height: int, detail: ImageDetail, likely: int, most: int) -> None:
    image = ImagePart(png(width, height), detail=detail)
    assert (image_tokens.likely_tokens(image), image_tokens.most_tokens(image)) == (likely, most)
