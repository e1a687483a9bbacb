"""Fine-tune a vision model on high-resolution images: a class for each image, or one for each of its pixels.

By default EfficientNet-Lite0 with LoRA learns to tell road signs that are small in large images; the signs are drawn,
into real photographs. One's own model and data, a folder with a folder of images for each class, go by flags:

    accelerate launch -m recipes.driving_images --model google/vit-base-patch16-224 --ignore_mismatched_sizes \
        --lora.alpha 32 --dataset signs/ --resolution 224
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from hf_accum import recipe  # its parts are imported when they are used: help and a wrong flag need no torch
from hf_accum.config.lora import LoraConfig
from hf_accum.config.validation import require, require_not_empty
from recipes.embedded.efficientnet import ORIGIN, efficientnet_lite0

if TYPE_CHECKING:
    from hf_accum.tasks.vision.data import LabelledImages, MaskedImages
    from hf_accum.tasks.vision.images import Colours
    from hf_accum.tasks.vision.inputs import ImageInputs

_MOST_PIXELS = 89_478_485  # as Pillow has it
_TWO = ("no", "yes")  # classes, where they are not known


@dataclass(frozen=True, kw_only=True)
class DrivingImagesConfig(recipe.RecipeConfig):
    """What an image is, its class or mask, and how it is scaled and changed."""

    task: Literal["classification", "segmentation"] = "classification"
    """A class for each image, or for each pixel of it."""
    image_column: str = "image"
    """Column with the image: its bytes, or its path in the dataset's folder."""
    label_column: str = "label"
    """Column with the class of an image; of a folder without metadata.jsonl it is the name of the image's folder."""
    mask_column: str = "mask"
    """Column with the mask: an image whose pixels are the numbers of classes."""
    labels: list[str] | str = field(default_factory=list)
    """Names of the classes, in order (a list, or with commas between); default: those in the data, sorted."""
    ignore_index: int = 255
    """The number in masks of pixels that have no class."""
    resolution: int = 512
    """Pixels a side to which each image is scaled, a multiple of 32: memory and time go with its square. Messages and
    metrics count patches of 16 x 16 pixels where they count tokens of texts."""
    max_image_pixels: int = _MOST_PIXELS
    """Images of more pixels are bad rows: a small file can fill the memory."""
    pixel_range: int = 65_535
    """The value that is white in images of 16 bits: 4095 where only 12 of them are used."""
    background: Literal["black", "white"] = "black"
    """What is seen where an image is transparent."""
    augment: bool = True
    """Change images at random in each pass, by (seed, pass, image): the flags below say how far."""
    crop_scale: float = 0.9
    """The least share of an image's area that is kept; 1: all of it."""
    horizontal_flip: bool = False
    """Turn half of the images around: not where left and right mean something, as on road signs."""
    color_jitter: float = 0.2
    """Light, contrast and colours change by factors of up to 1 +- this."""
    batch_norm: Literal["frozen", "micro_batch"] = "frozen"
    """Statistics of BatchNorm layers: those that the model came with, or of each micro-batch, by which the gradient
    then depends on the cut (and not with LoRA, since an adapter holds none; nor on several ranks)."""
    ignore_mismatched_sizes: bool = False
    """Put a new head in the place of one for other classes, or for as many in another order."""
    max_length: int = recipe.RecipeConfig.max_length
    """Says nothing here: --resolution does."""
    effective_batch_size: int = 8
    """Images per optimizer step, all ranks together."""
    shuffle_block_size: int = 1_000
    """Images that are shuffled, and held in memory as they are stored, together; 1: in file order."""
    learning_rate: float | None = 5e-4
    """The highest learning rate of the schedule, for a head that reads large features; adapters go faster, by
    lora.alpha."""
    lora: LoraConfig = field(default_factory=lambda: LoraConfig(alpha=256.0, target_modules="all-linear-and-conv"))
    """Of convolutions that learn something new within a hundred steps; alpha 32 is usual for transformers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.split_names("labels")
        require_not_empty(self, "image_column", "label_column", "mask_column", rule="not empty")
        for holds, flag, rule in (
            (len(set(self.labels)) == len(self.labels), "labels", "all different"),
            (len(self.labels) != 1, "labels", "at least 2 names"),
            (len(self.labels) <= 256 or self.task == "classification", "labels", "at most 256 names"),
            (32 <= self.resolution <= 16_384, "resolution", "from 32 to 16,384"),
            (self.resolution % 32 == 0, "resolution", "a multiple of 32"),
            (0 < self.max_image_pixels <= _MOST_PIXELS, "max_image_pixels", f"from 1 to {_MOST_PIXELS:,}"),
            (0 < self.pixel_range <= 65_535, "pixel_range", "from 1 to 65,535"),
            (0 < self.crop_scale <= 1, "crop_scale", "above 0, and at most 1"),
            (0 <= self.color_jitter < 1, "color_jitter", "in [0, 1)"),
            (
                self.batch_norm == "frozen" or self.lora.rank == 0,
                "batch_norm",
                "frozen with LoRA: an adapter holds no statistics (`lora.rank 0` trains the whole model)",
            ),
            (
                self.max_length == recipe.RecipeConfig.max_length,
                "max_length",
                "left out: images have one size, `resolution`",
            ),
        ):
            require(holds, flag, getattr(self, flag), rule)


def train(config: DrivingImagesConfig):
    """Train; returns the figures of the held-out part: accuracy and F1, or the overlap (IoU) of each class."""
    from hf_accum import accumulate
    from hf_accum.models.batch_norm import refuse_statistics_of_ranks
    from hf_accum.tasks.vision.inputs import load_image_inputs

    run = recipe.StartedRun(config, workload)  # what is wrong with the folder, the launch or the model is said here
    refuse_statistics_of_ranks(run.planned.model, run.ranks.count)
    inputs, processor = load_image_inputs(
        config.model or efficientnet_lite0(),
        config.resolution,
        config.max_image_pixels,
        config.trust,
        colours_of(config),
    )
    # Read once, before any weight: its classes, its size, its bad images.
    data = open_data(config, run.ranks, run.earlier_values("labels"))
    task, spec = task_of(config, inputs, data), spec_of(config, data.class_names)
    task.check_metrics(config.best_metric)
    config = replace(config, labels=list(data.class_names))
    how = {"processor": processor, "draw": task.draw}  # images are augmented anew in each pass
    with recipe.Training(run=run, config=config, data=data, task=task, spec=spec, **how) as training:
        accelerator, model, capacity = training.accelerator, training.model, training.capacity
        optimizer, scheduler, nonfinite = training.optimizer, training.scheduler, training.nonfinite
        for window in training.windows:  # the images of one optimizer step
            for micro_batch in window.micro_batches(capacity):
                with accumulate(accelerator, model, micro_batch):
                    loss = task.summed_loss(model, micro_batch.batch)  # summed over images or pixels, in float32
                    accelerator.backward(micro_batch.scaled(loss))
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            if nonfinite.accepts(window, grad_norm):
                optimizer.step()
                scheduler.step()
            optimizer.zero_grad()
            training.step_done(window, grad_norm)
        return training.finish()


def task_of(config: DrivingImagesConfig, inputs: "ImageInputs", data: "LabelledImages | MaskedImages | None") -> Any:
    """An image with a class, or with one for each pixel, and the loss. Without data: for a plan."""
    from hf_accum.accumulation.losses import CrossEntropy
    from hf_accum.tasks.vision.augmentation import Augmenter
    from hf_accum.tasks.vision.classification import ImageClassification
    from hf_accum.tasks.vision.segmentation import SemanticSegmentation

    augmenter = None
    if config.augment:
        augmenter = Augmenter(config.seed, config.crop_scale, config.horizontal_flip, config.color_jitter)
    kind = SemanticSegmentation if config.task == "segmentation" else ImageClassification
    return kind(data, CrossEntropy(), inputs, augmenter)  # type: ignore[arg-type] (the data is that of the task)


def spec_of(config: DrivingImagesConfig, names: tuple[str, ...]) -> "recipe.ModelSpec":
    """A vision model with the classes' names, its BatchNorm as the flag says."""
    from transformers import AutoModelForImageClassification

    from hf_accum.models.batch_norm import freeze_statistics
    from hf_accum.tasks.labels import named_labels
    from hf_accum.tasks.vision.segmenter import SemanticSegmenter

    auto_class = SemanticSegmenter if config.task == "segmentation" else AutoModelForImageClassification
    return recipe.ModelSpec(
        auto_class,
        config.model or efficientnet_lite0(),
        None,
        named_labels(names),
        replace_head=config.ignore_mismatched_sizes,
        origin="" if config.model else ORIGIN,
        prepare=freeze_statistics if config.batch_norm == "frozen" else None,
    )


def workload(config: DrivingImagesConfig, precision: str = "no") -> "recipe.Workload":
    """The same by the flags alone, for `hf-accum plan`: two classes, where none are known; checks `resolution`."""
    from hf_accum.models.trainable import without_weights
    from hf_accum.tasks.vision.inputs import check_resolution, inputs_without_processor

    names = known_names(config)
    spec = spec_of(config, names or _TWO)
    plain = replace(config, lora=replace(config.lora, rank=0), quantization="none", gradient_checkpointing=False)
    check_resolution(without_weights(spec, plain), config.model or efficientnet_lite0(), config.resolution)
    assumed = "" if names else f"{len(_TWO)} classes, since `labels` names none"
    task = task_of(config, inputs_without_processor(config.resolution), None)
    return recipe.planned(spec, task, config, precision, assumed)


def predictor(config: DrivingImagesConfig, task: Any):
    """What `hf-accum predict` tells of an image, or of its pixels."""
    from hf_accum.tasks.vision.data import Pictures
    from hf_accum.tasks.vision.prediction import ImagePredictor

    pictures = Pictures.in_dataset(str(config.dataset), config.image_column, config.max_image_pixels)
    return ImagePredictor(task, pictures)


def open_data(config: DrivingImagesConfig, ranks: "recipe.Ranks", earlier_labels: tuple[str, ...] = ()):
    """The images of the flags, or the embedded signs; with masks, for a segmentation."""
    from hf_accum.tasks.vision.data import open_labelled_images, open_masked_images
    from recipes.embedded.signs import road_signs

    embedded = {"signs": recipe.Embedded(road_signs, {})}
    names = known_names(config) if config.task == "segmentation" else tuple(config.labels)
    config, dataset = recipe.with_dataset(config, ranks, embedded)
    how: dict[str, Any] = {
        "image_column": config.image_column,
        "label_names": names,
        "earlier_labels": earlier_labels,
    }
    how |= {"most_pixels": config.max_image_pixels, "colours": colours_of(config)}
    if config.task == "segmentation":
        of_masks = {"mask_column": config.mask_column, "ignore_index": config.ignore_index}
        return open_masked_images(dataset, ranks, config, **how, **of_masks)
    return open_labelled_images(dataset, ranks, config, **how, label_column=config.label_column)


def colours_of(config: DrivingImagesConfig) -> "Colours":
    """What is seen in images that leave it open."""
    from hf_accum.tasks.vision.images import Colours

    return Colours(config.pixel_range, config.background)


def known_names(config: DrivingImagesConfig) -> tuple[str, ...]:
    """The names of the classes as far as they are known before the data is read; else none."""
    from recipes.embedded.signs import CLASSES

    if config.labels or config.dataset not in (None, "embedded:signs"):
        return tuple(config.labels)
    return ("background", *CLASSES) if config.task == "segmentation" else CLASSES


main = recipe.command(DrivingImagesConfig, train, __doc__)

if __name__ == "__main__":
    main()
