"""Structured pruning with DepGraph, through torch-pruning.

Whole channels are removed, with everything that depends on them (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023). Layers that must be pruned together form a group. An importance scores the
channels of each group; a scope determines which channels compete with each other.
"""

import contextlib
import copy
import math
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn

from common.compression import dependencies
from common.compression.importance import IMPORTANCES, ROUND_TO, Importance
from common.system import seeding
from common.system.errors import UserError, first_line
from common.system.terminal import progress_bar

LAYERS = nn.Conv2d | nn.Linear
Widths = dict[str, int]  # the number of output channels that a layer keeps, by its name


@dataclass(frozen=True)
class Group:
    """Layers that are pruned together.

    Attributes:
        layers: Their names, the root of the group first.
        scores: Of each channel, float32 [channels]; the lowest are removed first.
        quantiles: Of each channel among all that it competes with, from 0 (removed first) to 1, float32
            [channels].
        multiple: Of which every width is one: 8, in a grouped convolution also the number of its groups,
            which stay equally wide.
    """

    layers: tuple[str, ...]
    scores: Tensor
    quantiles: Tensor
    multiple: int = ROUND_TO

    def width(self, fraction: float, multiple: int = ROUND_TO) -> int:
        """How many channels are kept.

        Args:
            fraction: Of the channels in its scope, the part that is removed, from 0 to 1.
            multiple: What the width is rounded to.

        Returns:
            A multiple of `multiple` and of the group's own, at least that; or all channels.
        """
        width = rounded(float((self.quantiles > fraction).sum()), math.lcm(multiple, self.multiple))
        return min(width, len(self.scores))


def rank(
    model: nn.Module,
    importance: str | Importance,
    scope: str,
    *,
    classifier: str,
    image_size: int,
    seed: tuple[int, ...] = (0,),
) -> list[Group]:
    """Finds the groups of a model, and ranks their channels.

    Args:
        model: The network.
        importance: What scores a channel: the result of `importance.prepare`, or the name of one that needs
            no images. "magnitude": the squared L2 norm, mean over the layers of the group. "lamp": that norm
            over the sum of those in the group that are no smaller (Lee et al., ICLR 2021). "bn-scale": the
            batch-norm weight (Liu et al., ICCV 2017). "taylor": weight times gradient (Molchanov et al., CVPR
            2019). "random". All of these but lamp and random are divided by their mean in the group.
        scope: Which channels compete. "local": those of a group; "global": all; "isomorphic": those of
            groups with the same structure (Fang et al., ECCV 2024).
        classifier: Name of the layer that yields the logits; it is not pruned.
        image_size: Side of the images, in pixels.
        seed: Of random scores.

    Returns:
        The groups.

    Raises:
        UserError: The network cannot be pruned, or no layer has such a score.
    """
    names, followed = {module: name for name, module in model.named_modules()}, False
    score_of = IMPORTANCES[importance] if isinstance(importance, str) else importance
    layers, scores, scopes, multiples, was_training = [], [], [], [], model.training
    with _refusing(model), seeding.fork_rng(*seed):
        graph = dependencies.DependencyGraph().build_dependency(model, _example(model, image_size))
        found = graph.get_all_groups([model.get_submodule(classifier)], (nn.Conv2d, nn.Linear))
        for group in progress_bar(found, desc="ranking", unit="group"):
            if not graph.passable(group):
                continue
            followed = True
            if (score := score_of(group)) is None:
                continue
            out = graph.is_out_channel_pruning_fn
            pruned = [dep.target.module for dep, _ in group if out(dep.handler)]
            layers.append(tuple(dict.fromkeys(names[one] for one in pruned if isinstance(one, LAYERS))))
            # in a group with only zeros the score is 0 / 0
            scores.append(score.nan_to_num(nan=0.0).float().cpu())
            structure = tuple((type(dep.target.module), out(dep.handler)) for dep, _ in group)
            scopes.append({"local": layers[-1], "global": None, "isomorphic": structure}[scope])
            multiples.append(math.lcm(ROUND_TO, graph.channel_groups(group)))
    model.train(was_training)
    if not layers and not followed:
        raise UserError(f"torch-pruning cannot follow the channels of any layer of {type(model).__name__}")
    if not layers:
        raise UserError("no layer of this network has such a score: choose another --importance")
    ranked = zip(layers, scores, _quantiles(scores, scopes), multiples, strict=True)
    return [Group(*each) for each in ranked]


def _quantiles(scores: list[Tensor], scopes: list) -> list[Tensor]:
    """Of each group's channels, the quantiles among the channels of all groups with the same scope."""
    quantiles = [None] * len(scores)
    for scope in set(scopes):
        members = [index for index, each in enumerate(scopes) if each == scope]
        order = torch.cat([scores[index] for index in members]).argsort(stable=True).argsort()
        parts = ((order + 0.5) / len(order)).split([len(scores[index]) for index in members])
        for index, part in zip(members, parts, strict=True):
            quantiles[index] = part
    return quantiles


def prune(
    model: nn.Module, groups: list[Group], widths: Widths, *, classifier: str, image_size: int
) -> nn.Module:
    """Removes the channels with the lowest scores.

    Args:
        model: Not changed.
        groups: The result of `rank` for this model.
        widths: How many channels each layer keeps; layers without an entry keep all.
        classifier: Name of the layer that yields the logits; it is not pruned.
        image_size: Side of the images, in pixels.

    Returns:
        The pruned copy.

    Raises:
        UserError: The network cannot be pruned.
    """
    pruned = copy.deepcopy(model).eval()
    names = {module: name for name, module in pruned.named_modules()}
    scores = {group.layers[0]: group.scores for group in groups}
    # half a channel more, because the library truncates
    ratios = {
        (layer := pruned.get_submodule(name)): max(0.0, 1 - (width + 0.5) / layer.weight.shape[0])
        for name, width in widths.items()
    }
    with _refusing(model) as reached:
        torch_pruning.pruner.BasePruner(
            pruned,
            _example(pruned, image_size),
            importance=lambda group: scores.get(names[group[0].dep.target.module]),
            pruning_ratio=0.0,
            pruning_ratio_dict=ratios,
            ignored_layers=[pruned.get_submodule(classifier)],
            round_to=1,  # widths are rounded; torch-pruning's rounding is wrong for grouped convolutions
        ).step()
        hooks = [
            layer.register_forward_pre_hook(lambda layer, _: reached.append(names[layer])) for layer in names
        ]
        with torch.no_grad():
            pruned(_example(pruned, image_size))
        for hook in hooks:
            hook.remove()
    return pruned.train(model.training)


def widths_from_state(state: dict[str, Tensor], groups: list[Group]) -> Widths:
    """Reads the widths of a model that is pruned already.

    Args:
        state: Its state dict.
        groups: The result of `rank` for the model before it was pruned.

    Returns:
        The width of each layer in `groups`.
    """
    return {name: len(state[f"{name}.weight"]) for group in groups for name in group.layers}


def widths_for_fraction(groups: list[Group], fraction: float, multiple: int = ROUND_TO) -> Widths:
    """Chooses widths by a fraction of the channels.

    Args:
        groups: The result of `rank`.
        fraction: The part of the channels that is removed in each scope, from 0 to 1.
        multiple: What widths are rounded to, a multiple of 8.

    Returns:
        The width of each layer in `groups`.
    """
    return {name: group.width(fraction, multiple) for group in groups for name in group.layers}


def _example(model: nn.Module, image_size: int) -> Tensor:
    weight = next(model.parameters())
    return torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype)


def rounded(width: float, multiple: int = ROUND_TO) -> int:
    """Rounds a width.

    Args:
        width: A number of channels.
        multiple: Of which the result is one.

    Returns:
        The nearest multiple, at least one.
    """
    return max(1, math.floor(width / multiple + 0.5)) * multiple


@contextlib.contextmanager
def _refusing(model: nn.Module):
    """Turns the errors of torch-pruning on networks that it cannot prune into a UserError.

    Yields the names of the layers that were reached: the last one is named.
    """
    reached = []
    try:
        with dependencies.bounded() as reached:
            yield reached
    except dependencies.EndlessError as error:
        raise UserError(f"torch-pruning cannot prune {type(model).__name__}: {error}") from None
    # torch-pruning asks for more than a network has, or the pruned network does not run
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        place = next((f" at the layer {name}" for name in reversed(reached) if name), "")
        raise UserError(
            f"torch-pruning cannot follow the channels of {type(model).__name__}{place}: {first_line(error)}"
        ) from None
