"""What is seen in images that leave it open: transparent ones, and ones of 16 bits; counted, to be said."""

from dataclasses import dataclass, field, replace

from PIL import Image

from hf_accum.distributed.ranks import Ranks
from hf_accum.tasks.vision.images import Colours, highest_of_16_bits, is_transparent


@dataclass(frozen=True)
class Seen:
    """Images that leave open what is seen in them, as one pass over all has found, with the flags' `colours`."""

    colours: Colours = field(default_factory=Colours)
    num_transparent: int = 0
    num_of_16_bits: int = 0
    highest: int = 0
    """The highest value of those of 16 bits."""

    @property
    def notes(self) -> list[str]:
        """What is to be said of them."""
        notes: list[str] = []
        if self.num_transparent:
            notes.append(
                f"{self.num_transparent:,} images are transparent in places, where {self.colours.background} is seen "
                "(`background`)"
            )
        if self.num_of_16_bits and self.highest <= self.colours.white // 2:
            notes.append(
                f"{self.num_of_16_bits:,} images have 16 bits and no value above {self.highest:,}, where "
                f"{self.colours.white:,} is white: they are seen dark; `pixel_range` sets it, as to 4095 of 12 bits"
            )
        elif self.num_of_16_bits and self.highest > self.colours.white:
            notes.append(
                f"images of 16 bits have values up to {self.highest:,}, and all above {self.colours.white:,} are "
                "white (`pixel_range`)"
            )
        return notes


class Looks:
    """Collects what is seen in images."""

    def __init__(self, colours: Colours) -> None:
        self._seen = Seen(colours)

    def add(self, image: Image.Image) -> None:
        """Another one, decoded."""
        seen, highest = self._seen, highest_of_16_bits(image)
        self._seen = replace(
            seen,
            num_transparent=seen.num_transparent + is_transparent(image),
            num_of_16_bits=seen.num_of_16_bits + (highest is not None),
            highest=max(seen.highest, highest or 0),
        )

    def of_all_ranks(self, ranks: Ranks) -> Seen:
        """What all ranks have seen. A collective."""
        parts = ranks.gather_objects(self._seen)
        return Seen(
            self._seen.colours,
            sum(part.num_transparent for part in parts),
            sum(part.num_of_16_bits for part in parts),
            max(part.highest for part in parts),
        )
