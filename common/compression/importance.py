"""What scores the channels of a group of layers; the lowest scores are removed first."""

import itertools
from collections.abc import Callable, Iterable

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning import importance as scorers

from common.compression import regression
from common.compression.distillation import cross_entropy
from common.system import distributed, hardware
from common.system.terminal import progress_bar

ROUND_TO = 8  # widths stay multiples of this: others are slow
GRADIENT_BATCHES = 16  # of training images, for the Taylor importance
MOMENT_BATCHES = 8  # of training images, for the reconstruction error
STEPS = 160  # in which the channels of a group are removed, at most
READS = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
Moments = dict[str, Tensor]  # E[x x^T] of the inputs x of each layer, float64 [C, C], by its name
Importance = Callable[[torch_pruning.Group], Tensor | None]  # the scores of the channels of a group

# of each kind of budget, what the error of a channel is divided by; the search for RAM divides by the values
COSTS = dict.fromkeys(("parameters", "size"), "parameters") | dict.fromkeys(
    ("macs", "latency", "instructions"), "macs"
)
IMPORTANCES = {
    "magnitude": scorers.GroupMagnitudeImportance(p=2),
    "taylor": scorers.GroupTaylorImportance(),
    "lamp": scorers.LAMPImportance(p=2),
    "bn-scale": scorers.BNScaleImportance(),
    "random": scorers.RandomImportance(),
}


def prepare(
    importance: str, model: nn.Module, batches: Iterable, device: torch.device, kind: str = ""
) -> Importance:
    """Shows a network as many training images as an importance needs. Weights and statistics do not change.

    Args:
        importance: Of `IMPORTANCES`, or "reconstruction" for `ReconstructionError`.
        model: Moved to `device`, and put into eval mode.
        batches: (images, labels) of training.
        device: Where the model runs.
        kind: Of the budget: the reconstruction error is divided by what a channel costs, as in `COSTS`.

    Returns:
        What scores a group.
    """
    if importance == "reconstruction":
        some = itertools.islice(batches, MOMENT_BATCHES)
        first = next(some)
        moments = second_moments(model, itertools.chain([first], some), device)
        per = COSTS.get(kind)
        return ReconstructionError(model, moments, per and _costs(model, first[0][:1].to(device), per))
    if importance == "taylor":
        accumulate_gradients(model, batches, device)
    return IMPORTANCES[importance]


def accumulate_gradients(model: nn.Module, batches: Iterable, device: torch.device) -> None:
    """Leaves gradients of the cross-entropy in the parameters, for the Taylor importance.

    They are summed over the first 16 batches, and over all processes. Weights and batch-norm statistics do
    not change.

    Args:
        model: Moved to `device`, and put into eval mode.
        batches: (images, labels) of training.
        device: Where the model runs.
    """
    memory_format = hardware.memory_format(model, device)
    model.to(device, memory_format=memory_format).eval().zero_grad()
    some = itertools.islice(batches, GRADIENT_BATCHES)
    for images, labels in progress_bar(some, total=GRADIENT_BATCHES, desc="gradients", unit="batch"):
        images = images.to(device).contiguous(memory_format=memory_format)
        cross_entropy(model, images, labels.to(device))[0].backward()
    for parameter in model.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = distributed.all_reduce(gradient)


@torch.no_grad()
def second_moments(model: nn.Module, batches: Iterable, device: torch.device) -> Moments:
    """Computes E[x x^T] of the inputs x of each layer, over images and positions.

    Args:
        model: Moved to `device`, and put into eval mode.
        batches: (images, labels).
        device: Where the model runs.

    Returns:
        Of each Conv2d that is not grouped, and of each Linear, float64 [C, C] on the CPU, where C are its
        input channels. Layers with more than `regression.LARGEST` have no entry.
    """
    sums, names = {}, {module: name for name, module in model.named_modules()}
    calls = itertools.count()

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        x = regression.rows(layer, inputs[0], regression.positions(layer, inputs[0], next(calls))).squeeze(0)
        total, count = sums.get(names[layer], (0.0, 0))
        sums[names[layer]] = (total + (x.T @ x).double(), count + len(x))

    layers = [layer for layer in names if _is_dense(layer) and layer.weight.shape[1] <= regression.LARGEST]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with hardware.full_float32():
            for images, _ in progress_bar(batches, desc="moments", unit="batch"):
                model.to(device).eval()(images.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    moments = {}
    for name, (total, count) in sorted(sums.items()):
        everywhere = distributed.all_reduce(torch.tensor(float(count)))
        moments[name] = distributed.all_reduce(total.cpu()) / everywhere
    return moments


def _costs(model: nn.Module, image: Tensor, per: str) -> dict[nn.Module, int]:
    """How much each Conv2d and Linear costs, in parameters or in MACs for one image."""
    costs = {}

    def note(layer: nn.Module, _inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        positions = outputs.numel() // outputs.shape[1 if isinstance(layer, nn.Conv2d) else -1]
        costs[layer] = layer.weight.numel() * (positions if per == "macs" else 1)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return costs


class ReconstructionError:
    """Scores a channel by the error that is left once the layers that read it are reconstructed without it.

    Eight or more channels at a time are removed, those that increase the error least, and the others
    compensate for them as far as they can at the same position. Removing the columns c of a layer with
    weights W and inputs x, H = E[x x^T], adds tr([H^-1]_cc^-1 (W^T W)_cc) to its squared error (Optimal Brain
    Surgeon: Hassibi, Stork, NeurIPS 1992; for channels: Kurtic, Frantar, Alistarh, "ZipLM", NeurIPS 2023).
    The positions of a kernel are taken as independent.
    """

    def __init__(self, model: nn.Module, moments: Moments, costs: dict[nn.Module, int] | None = None):
        """Prepares the matrices of each layer.

        Args:
            model: The network.
            moments: The result of `second_moments`.
            costs: Of each layer, such as its parameters: scores are divided by the cost of a channel.
        """
        # a grouped layer, or one too large for a regression, is scored by its weights: it does not compensate
        self._matrices, self._alone, self._costs = {}, {}, costs
        for name, layer in model.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            if (moment := moments.get(name)) is None:
                groups, squares = getattr(layer, "groups", 1), layer.weight.detach().double().cpu().square()
                squares = squares.reshape(groups, -1, layer.weight.shape[1], layer.weight[0, 0].numel())
                self._alone[layer] = squares.sum((1, 3)).flatten() / squares.sum().clamp(min=regression.TINY)
                continue
            weight = layer.weight.detach().double().cpu().movedim(1, -1).flatten(0, -2)  # [rows, C]
            product = weight.T @ weight
            ridge = (regression.RIDGE * moment.diagonal().mean()).clamp(min=regression.TINY)
            inverse = torch.linalg.inv(moment + ridge * torch.eye(len(moment)).double())
            self._matrices[layer] = inverse, product / (product * moment).sum().clamp(min=regression.TINY)

    def __call__(self, group: torch_pruning.Group) -> Tensor | None:
        """Scores the channels of a group.

        Args:
            group: Layers that are pruned together.

        Returns:
            float64 [channels]: the increase of the squared error over the mean square of the outputs, summed
            over the layers that read the channels, and divided by the cost. None where no layer reads them.
        """
        count = len(group[0].idxs)
        readers, fixed = [], []
        for dep, indices in group:
            layer, columns = dep.target.module, torch.tensor(indices)
            if dep.handler in READS and layer in self._matrices:
                readers.append([matrix[columns][:, columns] for matrix in self._matrices[layer]])
            elif dep.handler in READS and layer in self._alone:
                fixed.append(self._alone[layer][columns].reshape(count, -1).sum(1))
        if not readers and not fixed:
            return None
        scores, left, highest = torch.zeros(count, dtype=torch.float64), torch.arange(count), 0.0
        while len(left):
            errors = sum([_errors(*reader, count) for reader in readers] + fixed)[left]
            lowest = errors.argsort(stable=True)[: max(ROUND_TO, count // STEPS)]
            # a channel that is removed later never ranks below one that is removed before
            scores[left[lowest]] = errors[lowest].clamp(min=highest)
            highest = float(scores.max())
            for reader in readers:
                _remove(*reader, left[lowest], count)
            left = left[~torch.isin(left, left[lowest])]
        if self._costs is not None:
            scores *= count / sum(self._costs.get(dep.target.module, 0) for dep, _ in group)
        return scores


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1


def _errors(inverse: Tensor, product: Tensor, channels: int) -> Tensor:
    """What the removal of each channel adds to the error; each has as many columns, one after the other."""
    if len(inverse) == channels:
        return product.diagonal() / inverse.diagonal()
    shape = (channels, len(inverse) // channels) * 2
    blocks = [
        matrix.reshape(shape).diagonal(dim1=0, dim2=2).permute(2, 0, 1) for matrix in (inverse, product)
    ]
    return torch.linalg.solve(*blocks).diagonal(dim1=1, dim2=2).sum(1)


def _remove(inverse: Tensor, product: Tensor, gone: Tensor, channels: int) -> None:
    """Changes H^-1 and W^T W to those without the channels `gone`, for which the others compensate."""
    columns = torch.arange(len(inverse)).reshape(channels, -1)[gone].flatten()
    factor = torch.linalg.solve(inverse[columns][:, columns], inverse[columns])  # W becomes W - W_gone factor
    half = product[columns] - product[columns][:, columns] @ factor / 2
    product.addmm_(half.T, factor, alpha=-1).addmm_(factor.T, half, alpha=-1)
    inverse.addmm_(inverse[:, columns], factor, alpha=-1)
    inverse[columns, columns] = 1.0  # no division by 0
