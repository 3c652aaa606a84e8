"""The compact CNN that is trained from scratch: four blocks, 128 pixels, 192 dimensions.

It belongs to `models/` and not to `training/`, because its bundles are loaded for embedding too.
Its layout is that of torchvision's networks (`features`, then `classifier`), so that the classifier
is removed from it as from any other.
"""

from __future__ import annotations

from torch import Tensor, nn

IMAGE_SIZE = 128
WIDTHS = (24, 48, 96, 192)


class ScratchCNN(nn.Module):
    """Blocks of two 3 x 3 convolutions, each halving the side; global mean; one linear layer.

    Reads (n, 3, 128, 128) normalised float32; the map before pooling is (n, 192, 8, 8).
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        channels = 3
        for width in WIDTHS:
            blocks.append(_convolution(channels, width, stride=2))
            blocks.append(_convolution(width, width, stride=1))
            channels = width
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (n, num_classes)."""
        pooled = self.avgpool(self.features(images)).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


def _convolution(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
