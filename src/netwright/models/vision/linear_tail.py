"""A ReLU network that ends in several linear layers (Dang et al. 2023, arXiv:2301.00437), to watch classes collapse."""

from torch import Tensor, nn

from netwright import checks


class LinearTailMLP(nn.Module):
    """Fully connected ReLU layers, then square linear layers without bias, then the classifier.

    Args:
        in_features: Inputs ``(batch, *)`` are flattened to ``(batch, in_features)``.
        width: Width of all layers.
        relu_layers: How many layers have a ReLU.
        linear_layers: How many layers at the end have none, the classifier among them.
        num_classes: Outputs ``(batch, num_classes)``.
        bias: Whether the classifier has a bias.
        norm: Batch normalisation after every ReLU and once more before the linear layers. Without it a linear layer
            with bias stands in front of these, so that features may be negative either way.

    Raises:
        InputError: If a number is below 1.

    Source:
        arXiv:2301.00437, experiments on CIFAR-10: 3072 inputs, 6 ReLU layers; 2,898,954 parameters at width 512 with 1
        linear layer. With equal class sizes the paper's networks are normalised and have a bias, else neither.

    Example:
        >>> import torch
        >>> LinearTailMLP(64, 32, relu_layers=2, linear_layers=3)(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int = 3072,
        width: int = 512,
        relu_layers: int = 6,
        linear_layers: int = 1,
        num_classes: int = 10,
        *,
        bias: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("width", width),
            ("relu_layers", relu_layers),
            ("linear_layers", linear_layers),
            ("num_classes", num_classes),
        ):
            checks.at_least(name, value, 1)
        self.body = nn.Sequential(nn.Flatten())
        for layer in range(relu_layers):
            self.body.extend([nn.Linear(in_features if layer == 0 else width, width), nn.ReLU()])
            if norm:
                self.body.append(nn.BatchNorm1d(width))
        self.body.append(nn.BatchNorm1d(width) if norm else nn.Linear(width, width))
        self.tail = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(linear_layers - 1)))
        self.tail.append(nn.Linear(width, num_classes, bias=bias))
        for module in (*self.body, *self.tail):
            if isinstance(module, nn.Linear) and not module.weight.is_meta:
                nn.init.orthogonal_(module.weight)

    @property
    def tail_weights(self) -> list[Tensor]:
        """Weights of the linear layers at the end, in the order in which they are applied."""
        return [layer.weight for layer in self.tail if isinstance(layer, nn.Linear)]

    def features(self, input: Tensor) -> Tensor:
        """What the linear layers see: ``(batch, width)``."""
        features: Tensor = self.body(input)
        return features

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.tail(self.features(input))
        return output


__all__ = ["LinearTailMLP"]
