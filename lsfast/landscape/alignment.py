"""Permutation alignment: the units of one network in the order of another's that they resemble most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsfast import checks
from lsfast.landscape.states import State, own_buffers, read_state
from lsfast.landscape.units import Axis, Places, given_places, unit_places
from lsfast.objective import Objective
from lsfast.seeds import generator

_GAIN = 1e-12  # of |a| |b|: a smaller rise of the inner product is rounding


@dataclass(frozen=True, eq=False)
class Alignment:
    """A state whose units were permuted to resemble those of another; it computes the same function as before.

    Attributes
    ----------
    parameters
        [n], those of b, permuted.
    buffers
        name -> tensor: the floating buffers that the model reads, permuted alike.
    state
        Parameters and buffers by name: a state for `barrier`, `bezier`, ``model.load_state_dict(..., strict=False)``.
    permutations
        group -> int64 [units]: unit i is unit ``permutations[group][i]`` of b. A group has the name of the first
        parameter that has one entry (of its first axis, if it can be) for each of its units.
    distance_before, distance_after
        |a - b| and |a - parameters|, 0-dim float64.
    sweeps
        How many times all groups were gone through.
    """

    parameters: Tensor
    buffers: dict[str, Tensor]
    state: dict[str, Tensor]
    permutations: dict[str, Tensor]
    distance_before: Tensor
    distance_after: Tensor
    sweeps: int


def align(
    objective: Objective,
    a: State,
    b: State,
    seed: int = 0,
    max_sweeps: int = 100,
    groups: Mapping[str, Mapping[int, str]] | None = None,
) -> Alignment:
    r"""Permute the units of b, without changing the function it computes, to be as close to a as can be found.

    .. math:: \max_P \, \langle a, P b \rangle \quad \Leftrightarrow \quad \min_P \, |a - P b|

    over one permutation for each group of units: the neurons of a hidden layer, or the channels of a convolution with
    all that is tied to them (norms, residual sums, the next layer's inputs). Weight matching: with all other groups as
    they are, the best permutation of one is a linear assignment, solved exactly; groups are gone through in random
    order until none of them gains. This is done from two starts, and the closer result is kept: from b as it is, and
    from the groups matched once from the input on, each by the weights whose other axes are matched already. The second
    start finds a network back that was only permuted.

    Which units can be permuted is found from the captured program. Units that the model adds to its inputs, or that are
    its outputs, stay in place.

    Parameters
    ----------
    objective
        Its model says which units there are. Parameters it does not vary stay in place, and units tied to them.
    a, b
        A state dict, the path of one (safetensors, or by ``torch.save``), a module, or a vector [n].
    seed
        Of the order of groups.
    max_sweeps
        At most so many times through all groups.
    groups
        None: found. Or name of a parameter or floating buffer -> axis -> name of a group, for a model that cannot be
        followed: ``{"0.weight": {0: "hidden"}, "0.bias": {0: "hidden"}, "2.weight": {1: "hidden"}}``. The shortest axis
        of a group has one entry for each unit; an axis k times as long k consecutive ones (channels that were
        flattened). It is taken as given: that the function stays the same is for the caller to see to.

    Returns
    -------
    Alignment
        With the permuted `state`.

    Raises
    ------
    TypeError, ValueError
        If a state does not fit the model or its file cannot be read, another argument is not as above, no units can be
        permuted, or the model holds an operation through which they cannot be followed (attention, channels that are
        split, joined or sorted): the message names it.
    ImportError
        Without SciPy.

    References
    ----------
    Ainsworth, Hayase, Srinivasa: Git Re-Basin: Merging Models modulo Permutation Symmetries. ICLR 2023.

    Examples
    --------
    >>> aligned = lsfast.align(objective, "first.safetensors", "second.safetensors")
    >>> lsfast.barrier(objective, "first.safetensors", aligned.state).value
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"align: objective must be an Objective, got {type(objective).__name__}")
    checks.seed("align", seed)
    checks.positive_integer("align", "max_sweeps", max_sweeps)
    assign = _assignment()
    start, _ = read_state("align", objective, a, "a")
    end, found = read_state("align", objective, b, "b")
    if groups is None:
        places = unit_places("align", objective)
        names = _names(objective, places)
    else:
        places, names = given_places(objective, groups)
    if not names:
        raise ValueError("align: objective must have a model with units that can be permuted, got none")

    target = {name: part.double() for name, part in objective.unflatten(start).items() if places.get(name)}
    source = {name: part.double() for name, part in objective.unflatten(end).items() if places.get(name)}
    sizes = {axis.group: axis.units for axes in places.values() for axis in axes.values()}
    identity = {group: torch.arange(sizes[group]) for group in range(len(names))}
    least = _GAIN * float(start.double().norm() * end.double().norm())
    results = []
    for first in (False, True):
        matching = _Matching(target, source, places, dict(identity), assign)
        if first:
            matching.from_the_input()
        sweeps = matching.sweep(seed, max_sweeps, least)
        results.append((matching.inner(target), matching.permutations, sweeps))
    _, permutations, sweeps = max(results, key=lambda result: result[0])

    named = objective.unflatten(end)
    parameters = objective.flatten(
        {name: _permuted(part, places.get(name, {}), permutations) for name, part in named.items()}
    )
    buffers = {
        name: _permuted(found.get(name, own), places.get(name, {}), permutations).clone()
        for name, own in own_buffers(objective).items()
    }
    return Alignment(
        parameters,
        buffers,
        {**objective.unflatten(parameters), **buffers},
        {names[group]: permutation for group, permutation in permutations.items()},
        (start.double() - end.double()).norm(),
        (start.double() - parameters.double()).norm(),
        sweeps,
    )


def _names(objective: Objective, places: Places) -> list[str]:
    """Return the names of groups by number: the first parameter that has an entry for each unit on its first axis."""
    found: dict[int, str] = {}
    for last in (False, True):
        for name in objective.names:
            for k, axis in places.get(name, {}).items():
                if last or (k == 0 and axis.outer == axis.inner == 1):
                    found.setdefault(axis.group, name if k == 0 else f"{name} axis {k}")
    return [found[group] for group in sorted(found)]


def _assignment() -> Callable[[Any], tuple[Any, Any]]:
    try:
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("align needs SciPy: pip install 'lsfast[align]'") from error
    return lambda gains: linear_sum_assignment(gains, maximize=True)


class _Matching:
    """The permutations of all groups so far, and the source permuted by them.

    Parameters
    ----------
    target, source
        Parameters by name, float64: the source is to become close to the target.
    places
        Which of their axes count units of which group.
    permutations
        To start from.
    assign
        Returns the linear assignment with the largest sum.
    """

    def __init__(
        self,
        target: Mapping[str, Tensor],
        source: Mapping[str, Tensor],
        places: Places,
        permutations: dict[int, Tensor],
        assign: Callable[[Any], tuple[Any, Any]],
    ) -> None:
        self.target, self.current, self.permutations, self._assign = target, dict(source), permutations, assign
        self._places = {name: places[name] for name in target}
        self._of_group = {
            group: [name for name, axes in self._places.items() if any(axis.group == group for axis in axes.values())]
            for group in permutations
        }

    def from_the_input(self) -> None:
        """Match each group once, by the parameters that no unmatched group permutes where there are such."""
        done: set[int] = set()
        for group in self.permutations:
            known = [name for name in self._of_group[group] if self._others(name, group) <= done]
            self._match(group, known or self._of_group[group])
            done.add(group)

    def sweep(self, seed: int, max_sweeps: int, least: float) -> int:
        """Match groups in random order until no match gains more than `least`; return the number of sweeps."""
        random = generator(seed)
        for sweep in range(max_sweeps):
            gained = False
            for group in torch.randperm(len(self.permutations), generator=random).tolist():
                names = self._of_group[group]
                before, kept = (
                    self.inner(names),
                    ({name: self.current[name] for name in names}, self.permutations[group]),
                )
                self._match(group, names)
                if self.inner(names) - before > least:
                    gained = True
                else:  # a layer from a group to itself is not linear in the permutation: its match may lose
                    self.current.update(kept[0])
                    self.permutations[group] = kept[1]
            if not gained:
                return sweep + 1
        return max_sweeps

    def inner(self, names: Sequence[str] | Mapping[str, Tensor]) -> float:
        """Return the inner product of these parameters of the target and the permuted source."""
        return sum(float((self.target[name] * self.current[name]).sum()) for name in names)

    def _others(self, name: str, group: int) -> set[int]:
        """Return the groups of all axes of a parameter but one of this group."""
        groups = [axis.group for axis in self._places[name].values()]
        groups.remove(group)
        return set(groups)

    def _match(self, group: int, names: Sequence[str]) -> None:
        """Permute the units of a group to the best match by these parameters."""
        gains: Any = 0.0
        for name in names:
            for k, axis in self._places[name].items():
                if axis.group == group:
                    gains = gains + _units(self.target[name], k, axis) @ _units(self.current[name], k, axis).T
        _, columns = self._assign(gains.cpu().numpy())
        chosen = torch.from_numpy(columns)
        self.permutations[group] = self.permutations[group][chosen]
        for name in self._of_group[group]:
            axes = {k: axis for k, axis in self._places[name].items() if axis.group == group}
            self.current[name] = _permuted(self.current[name], axes, {group: chosen})


def _parted(x: Tensor, k: int, axis: Axis) -> Tensor:
    """View axis k as [outer, units, inner]."""
    return x.reshape(*x.shape[:k], axis.outer, axis.units, axis.inner, *x.shape[k + 1 :])


def _units(x: Tensor, k: int, axis: Axis) -> Tensor:
    """Return x as [units, what belongs to each]."""
    return _parted(x, k, axis).movedim(k + 1, 0).flatten(1)


def _permuted(x: Tensor, axes: Mapping[int, Axis], permutations: Mapping[int, Tensor]) -> Tensor:
    """Return x with the units that its axes count permuted: unit i becomes unit permutation[i]."""
    for k, axis in axes.items():
        index = permutations[axis.group].to(x.device)
        x = _parted(x, k, axis).index_select(k + 1, index).flatten(k, k + 2)
    return x
