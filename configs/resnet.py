"""ResNet50, pre-trained on ImageNet, on the real images: its head first, then all of it at a tenth of the rate.

    python jobs/train.py --config configs/resnet.py --workdir runs/resnet --config.dtype=bfloat16

That is for GPUs; a full run has not been measured yet. The weights are fetched from the Hugging Face hub once. Where
there is no network, fetch model.safetensors from https://huggingface.co/timm/resnet50.a1_in1k elsewhere, and give its
place:

    python jobs/train.py --config configs/resnet.py --workdir runs/resnet --config.init_from=model.safetensors

Other weights that fit: hf://microsoft/resnet-50, torchvision's resnet50-*.pth, and TorchXRayVision's ResNet50
(hf://torchxrayvision/resnet50-res512-all), which saw chest films at 512 px; prepared films are stored at 224.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """ResNet50 at 224 px: a linear head for 5 epochs, then everything for 25."""
    config = base.get_config()
    config.global_batch_size = 64
    config.data.image_size = 224
    config.model.architecture = "resnet"
    config.model.options = ConfigDict({"blocks": (3, 4, 6, 3), "head": (), "dropout": 0.0})
    config.init_from = "hf://timm/resnet50.a1_in1k"
    base.train_in(
        config,
        base.phase(5, 1e-3, "head", schedule="constant"),
        base.phase(25, 1e-4, warmup_epochs=1.0),
    )
    return config
