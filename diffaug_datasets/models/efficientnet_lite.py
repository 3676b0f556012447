"""EfficientNet-Lite0, a convolution net of 4.7 million weights, as a model that transformers knows.

The architecture is that of the TPU team (EfficientNet, arXiv 1905.11946, in its Lite variant): no squeeze and
excitation, ReLU6, stem and head of a fixed width, padding as TensorFlow's "SAME" lays it. It sees (255 x - 127) / 128.

It is used as encoder, as judge of ImageNet's classes and as a start for fine-tuning, like any model in a folder:
importing this module tells transformers' `AutoModel` and `AutoModelForImageClassification` of it.
"""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

MODEL_TYPE = "efficientnet_lite"
STEM, WIDTH = 32, 1280
EPSILON, MOMENTUM, DROPOUT = 1e-3, 0.01, 0.2


class Stage(NamedTuple):
    """Blocks of one shape: how much each widens, the side of its filter, the first one's stride, channels, how many."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)

# Names of a released checkpoint -> names here: of the network's own layers, and of those of a block.
LAYERS = {"_conv_stem": "stem.0", "_bn0": "stem.1", "_conv_head": "head.0", "_bn1": "head.1"}
PARTS = {"_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "filter.0", "_bn1": "filter.1"}
PARTS |= {"_project_conv": "project.0", "_bn2": "project.1"}


class SameConv2d(nn.Conv2d):
    """A convolution whose output is as large as the input over the stride, rounded up; what is odd goes to the end."""

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """The padded input, convolved."""
        padding: list[int] = []
        for length, kernel, stride in zip(images.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max(0, (-(-length // stride) - 1) * stride + kernel - length)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(images, padding))


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True) -> nn.Module:
    convolution = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=EPSILON, momentum=MOMENTUM)
    return nn.Sequential(convolution, norm, *([nn.ReLU6()] if active else []))


class Block(nn.Module):
    """An inverted bottleneck: widen, filter each channel, narrow; with a way around it where shapes allow."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.expand = _layer(inputs, wide, 1) if stage.expansion > 1 else nn.Identity()
        self.filter = _layer(wide, wide, stage.kernel, stride, groups=wide)
        self.project = _layer(wide, stage.channels, 1, active=False)
        self.is_around = stride == 1 and inputs == stage.channels

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k i j"]:
        """The block's channels, smaller by its stride."""
        made: Tensor = self.project(self.filter(self.expand(x)))
        return made + x if self.is_around else made


class EfficientNetLiteConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not typed here
    """What a folder's config.json says of the model; its shape is fixed."""

    model_type = MODEL_TYPE

    def __init__(self, image_size: int = 224, **others: Any) -> None:
        self.image_size, self.hidden_size = image_size, WIDTH
        super().__init__(**others)


class _Pretrained(PreTrainedModel):  # type: ignore[misc]
    config_class = EfficientNetLiteConfig
    base_model_prefix = "features"
    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        """Of what a checkpoint lacks, such as the head of other classes."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -(module.out_features**-0.5), module.out_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class EfficientNetLiteModel(_Pretrained):
    """Images [b 3 h w] to the last feature maps [b 1280 h/32 w/32] and their means [b 1280]."""

    _keys_to_ignore_on_load_unexpected = (r"^classifier\.",)

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _layer(3, STEM, 3, 2)
        blocks, inputs = [], STEM
        for stage in STAGES:
            for number in range(stage.blocks):
                blocks.append(Block(inputs, stage, stage.stride if number == 0 else 1))
                inputs = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = _layer(inputs, WIDTH, 1)
        self.post_init()

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"], **_: Any) -> BaseModelOutputWithPooling:
        """The maps as `last_hidden_state`, the means as `pooler_output`."""
        maps = self.head(self.blocks(self.stem(pixel_values)))
        return BaseModelOutputWithPooling(last_hidden_state=maps, pooler_output=maps.mean((2, 3)))


class EfficientNetLiteForImageClassification(_Pretrained):
    """The same with a linear layer for the classes of its configuration."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.features = EfficientNetLiteModel(config)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(WIDTH, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: Float[Tensor, "b 3 h w"], labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """`logits` [b C], and the cross-entropy as `loss` where there are labels [b]."""
        means = self.features(pixel_values).pooler_output
        logits: Tensor = self.classifier(self.dropout(means))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register(MODEL_TYPE, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
AutoModelForImageClassification.register(EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True)


def renamed(shipped: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a released checkpoint, under the names that the classifier here has for them.

    Raises:
        KeyError: a weight has a name that no released checkpoint has.
    """
    named: dict[str, Tensor] = {}
    for key, value in shipped.items():
        layer, _, weight = key.rpartition(".")
        if layer == "_fc":
            named[f"classifier.{weight}"] = value
        elif layer.startswith("_blocks."):
            _, number, part = layer.split(".")
            named[f"features.blocks.{number}.{PARTS[part]}.{weight}"] = value
        else:
            named[f"features.{LAYERS[layer]}.{weight}"] = value
    return named


def build_efficientnet_lite0(weights: dict[str, Tensor] | None = None, classes: int = 1000) -> nn.Module:
    """The network with random weights, or with those of a converted checkpoint; in evaluation mode.

    With weights of other classes the last layer stays random: a start for fine-tuning. `weights`: as `renamed` gives
    them.

    Raises:
        RuntimeError: a weight is missing, or has another shape.
    """
    config = EfficientNetLiteConfig(num_labels=classes)
    model: nn.Module = EfficientNetLiteForImageClassification(config)
    if weights is not None:
        own = model.state_dict()
        head = {k: v for k, v in own.items() if k.startswith("classifier.") and weights[k].shape != v.shape}
        model.load_state_dict({**weights, **head})
    model.eval()
    return model
