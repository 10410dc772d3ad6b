"""The networks whose weights we take, in PyTorch, with the parameter names of timm and torchvision.

Each has `activations(x)`, what ours calls features, and answers with logits: (N, C, H, W) -> (N, 3).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3


def conv(inputs, outputs, side, stride=1, groups=1, bias=False):
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=bias)


def mean(x):
    return x.mean((2, 3))


class Bottleneck(nn.Module):
    def __init__(self, inputs, filters, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, filters, 1), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv(filters, filters, 3, stride), nn.BatchNorm2d(filters)
        self.conv3, self.bn3 = conv(filters, 4 * filters, 1), nn.BatchNorm2d(4 * filters)
        self.downsample = nn.Sequential()
        if inputs != 4 * filters:
            self.downsample = nn.Sequential(conv(inputs, 4 * filters, 1, stride), nn.BatchNorm2d(4 * filters))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class ResNet(nn.Module):
    """As timm and torchvision name it; with one channel, TorchXRayVision's."""

    def __init__(self, blocks=(3, 4, 6, 3), channels=3):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, 64, 7, 2), nn.BatchNorm2d(64)
        inputs = 64
        for index, count in enumerate(blocks):
            filters, stage = 64 * 2**index, []
            for block in range(count):
                stage.append(Bottleneck(inputs, filters, 2 if index and not block else 1))
                inputs = 4 * filters
            self.add_module(f"layer{index + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(inputs, CLASSES)

    def activations(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.fc(mean(self.activations(x)))


class PreActivated(nn.Module):
    def __init__(self, inputs, filters, stride, first):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, filters, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(filters), conv(filters, filters, 3, stride)
        self.norm3, self.conv3 = nn.BatchNorm2d(filters), conv(filters, 4 * filters, 1)
        if first:
            self.downsample = nn.Sequential(OrderedDict(conv=conv(inputs, 4 * filters, 1, stride)))
        self.first = first

    def forward(self, x):
        y = F.relu(self.norm1(x))
        shortcut = self.downsample(y) if self.first else x
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return self.conv3(F.relu(self.norm3(y))) + shortcut


class ResNetV2(nn.Module):
    """As timm names it."""

    def __init__(self, blocks=(3, 4, 6, 3)):
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=conv(3, 64, 7, 2)))
        stages, inputs = [], 64
        for index, count in enumerate(blocks):
            filters, stage = 64 * 2**index, []
            for block in range(count):
                stage.append(PreActivated(inputs, filters, 2 if index and not block else 1, not block))
                inputs = 4 * filters
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*stage))))
        self.stages, self.norm = nn.Sequential(*stages), nn.BatchNorm2d(inputs)
        self.head = nn.Sequential(OrderedDict(fc=conv(inputs, CLASSES, 1, bias=True)))

    def activations(self, x):
        return F.relu(self.norm(self.stages(F.max_pool2d(self.stem(x), 3, 2, 1))))

    def forward(self, x):
        return mean(self.head(self.activations(x)))  # a mean of logits is the logits of the mean


class VGG(nn.Module):
    """As torchvision names it; with `timm`, as timm does, whose dense layers are convolutions."""

    def __init__(self, batch_norm, timm, head, convolutions=(2, 2, 3, 3, 3)):
        super().__init__()
        layers, inputs = [], 3
        for filters, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
            for _ in range(count):
                layers += [conv(inputs, filters, 3, bias=True)]
                layers += [nn.BatchNorm2d(filters), nn.ReLU()] if batch_norm else [nn.ReLU()]
                inputs = filters
            layers += [nn.MaxPool2d(2)]
        self.features, self.timm = nn.Sequential(*layers), timm
        one, two = head
        if timm:
            dense = OrderedDict(fc1=nn.Conv2d(inputs, one, 7), a=nn.ReLU(), fc2=nn.Conv2d(one, two, 1), b=nn.ReLU())
            self.pre_logits = nn.Sequential(dense)
            self.head = nn.Sequential(OrderedDict(fc=nn.Linear(two, CLASSES)))
        else:
            dense = [nn.Linear(49 * inputs, one), nn.ReLU(), nn.Dropout(), nn.Linear(one, two), nn.ReLU(), nn.Dropout()]
            self.classifier = nn.Sequential(*dense, nn.Linear(two, CLASSES))

    def activations(self, x):
        return self.features[:-1](x)

    def forward(self, x):
        x = self.features(x)
        if self.timm:
            return self.head(mean(self.pre_logits(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 7).flatten(1))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """As timm and torchvision name it; with one channel, TorchXRayVision's."""

    def __init__(self, depths=(6, 12, 24, 16), growth=32, channels=3):
        super().__init__()
        inputs = 2 * growth
        parts = OrderedDict(
            conv0=conv(channels, inputs, 7, 2),
            norm0=nn.BatchNorm2d(inputs),
            relu0=nn.ReLU(),
            pool=nn.MaxPool2d(3, 2, 1),
        )
        for index, depth in enumerate(depths, start=1):
            block = OrderedDict()
            for layer in range(1, depth + 1):
                block[f"denselayer{layer}"] = DenseLayer(inputs, growth)
                inputs += growth
            parts[f"denseblock{index}"] = nn.Sequential(block)
            if index < len(depths):
                norm, half = nn.BatchNorm2d(inputs), conv(inputs, inputs // 2, 1)
                transition = OrderedDict(norm=norm, relu=nn.ReLU(), conv=half, pool=nn.AvgPool2d(2))
                parts[f"transition{index}"] = nn.Sequential(transition)
                inputs //= 2
        parts["norm5"] = nn.BatchNorm2d(inputs)
        self.features, self.classifier = nn.Sequential(parts), nn.Linear(inputs, CLASSES)

    def activations(self, x):
        return F.relu(self.features(x))

    def forward(self, x):
        return self.classifier(mean(self.activations(x)))


class Squeeze(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.conv_reduce, self.conv_expand = conv(channels, width, 1, bias=True), conv(width, channels, 1, bias=True)

    def forward(self, x):
        y = self.conv_expand(F.silu(self.conv_reduce(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(y)


class Separable(nn.Module):
    """The block of the first stage, which does not expand."""

    def __init__(self, inputs, outputs, side, stride, expansion):
        super().__init__()
        assert expansion == 1
        self.conv_dw, self.bn1 = conv(inputs, inputs, side, stride, groups=inputs), nn.BatchNorm2d(inputs)
        self.se = Squeeze(inputs, inputs // 4)
        self.conv_pw, self.bn2 = conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.bn2(self.conv_pw(self.se(F.silu(self.bn1(self.conv_dw(x))))))
        return x + y if self.same else y


class Inverted(nn.Module):
    def __init__(self, inputs, outputs, side, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        self.conv_pw, self.bn1 = conv(inputs, wide, 1), nn.BatchNorm2d(wide)
        self.conv_dw, self.bn2 = conv(wide, wide, side, stride, groups=wide), nn.BatchNorm2d(wide)
        self.se = Squeeze(wide, inputs // 4)
        self.conv_pwl, self.bn3 = conv(wide, outputs, 1), nn.BatchNorm2d(outputs)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.silu(self.bn1(self.conv_pw(x)))
        y = self.se(F.silu(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.same else y


class EfficientNet(nn.Module):
    """B0 as timm names it."""

    # blocks, expansion, kernel side, stride, channels
    STAGES = (
        (1, 1, 3, 1, 16), (2, 6, 3, 2, 24), (2, 6, 5, 2, 40), (3, 6, 3, 2, 80),
        (3, 6, 5, 1, 112), (4, 6, 5, 2, 192), (1, 6, 3, 1, 320),
    )  # fmt: skip

    def __init__(self):
        super().__init__()
        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), nn.BatchNorm2d(32)
        stages, inputs = [], 32
        for count, expansion, side, stride, outputs in self.STAGES:
            stage, kind = [], Separable if expansion == 1 else Inverted
            for block in range(count):
                stage.append(kind(inputs, outputs, side, 1 if block else stride, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv(inputs, 1280, 1), nn.BatchNorm2d(1280)
        self.classifier = nn.Linear(1280, CLASSES)

    def activations(self, x):
        return F.silu(self.bn2(self.conv_head(self.blocks(F.silu(self.bn1(self.conv_stem(x)))))))

    def forward(self, x):
        return self.classifier(mean(self.activations(x)))
