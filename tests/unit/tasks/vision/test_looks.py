"""Images that leave open what is seen in them are counted over ranks, and said."""

import numpy as np
import pytest
from PIL import Image
from thread_ranks import run_ranks

from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.vision.images import Colours
from hf_accum.tasks.vision.looks import Looks, Seen

DRAWN = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
OPAQUE = Image.new("RGB", (4, 4))


def grey(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, np.uint16))


def test_they_are_counted_over_ranks() -> None:
    def look(ranks: Ranks) -> Seen:
        looks = Looks(Colours(white=4095))
        for image in ((DRAWN, grey(7), OPAQUE), (DRAWN, grey(300), grey(90)))[ranks.index]:
            looks.add(image)
        return looks.of_all_ranks(ranks)

    assert run_ranks(2, look) == [Seen(Colours(white=4095), 2, 3, 300)] * 2


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Seen(), []),
        (Seen(num_transparent=3), ["3 images are transparent in places, where black is seen (`background`)"]),
        (
            Seen(num_of_16_bits=2, highest=4095),
            [
                (
                    "2 images have 16 bits and no value above 4,095, where 65,535 is white: they are seen dark; "
                    "`pixel_range` sets it, as to 4095 of 12 bits"
                )
            ],
        ),
        (Seen(num_of_16_bits=2, highest=60_000), []),
        (Seen(Colours(4095), num_of_16_bits=2, highest=4000), []),
        (
            Seen(Colours(4095), num_of_16_bits=2, highest=5000),
            ["images of 16 bits have values up to 5,000, and all above 4,095 are white (`pixel_range`)"],
        ),
    ],
)
def test_what_may_not_be_meant_is_said_with_its_flag(seen: Seen, said: list[str]) -> None:
    assert seen.notes == said
