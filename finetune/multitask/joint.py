"""One trunk under the heads of several tasks, and which step is whose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from finetune.batches import Plan
from finetune.devices import Batch, Objective
from model.heads import Model, Output
from runtime.seed import mix


class Joint(Model):
    """The models of several tasks, whose trunk is one and the same."""

    def __init__(self, parts: Mapping[str, Model]) -> None:
        nn.Module.__init__(self)
        first, *others = parts.values()
        self.config = first.config
        self.newly_initialised = []
        self.trunk = first.trunk
        for net in others:
            net.trunk = first.trunk
        self.parts = nn.ModuleDict(dict(parts))

    def forward(self, part: str, **batch: Tensor) -> Output:
        """Run one task's model on a batch of its own."""
        out: Output = self.parts[part](**batch)
        return out

    def part(self, name: str) -> Model:
        """One task's model, the trunk included."""
        found = self.parts[name]
        assert isinstance(found, Model)
        return found

    def names(self, name: str) -> dict[str, str]:
        """The parameters of a task by their names in its own model: their names in this one."""
        return {
            own: own if own.startswith("trunk.") else f"parts.{name}.{own}"
            for own, _ in self.part(name).named_parameters()
        }


class Turns:
    """The objective of the task whose step it is.

    The heads of the others get gradients of zero: replicas wait for a gradient of each parameter.
    """

    def __init__(self, objectives: Mapping[str, Objective]) -> None:
        self._objectives = objectives
        self.part = next(iter(objectives))

    def __call__(self, forward: Callable[..., Any], module: Any, batch: Batch) -> Tensor:
        """Mean loss of a batch of the task `part`."""
        name = self.part
        loss = self._objectives[name](partial(forward, name), module.part(name), batch)
        idle = [
            parameter
            for own, parameter in module.named_parameters()
            if own.startswith("parts.")
            and not own.startswith(f"parts.{name}.")
            and parameter.requires_grad
        ]
        for parameter in idle:
            loss = loss + 0.0 * parameter.sum()
        return loss


@dataclass
class Mixture:
    """Which task each step is of: a pure function of (seed, step), the same on any machine."""

    names: Sequence[str]
    shares: Sequence[float]
    plans: Mapping[str, Plan]
    seed: int

    def __post_init__(self) -> None:
        self._turns: list[tuple[str, int]] = []
        self._counts = dict.fromkeys(self.names, 0)

    def turn(self, step: int) -> tuple[str, int]:
        """The task of a step, and how many steps it has had before."""
        while len(self._turns) <= step:
            generator = np.random.default_rng(mix(self.seed, len(self._turns), 1))
            name = self.names[generator.choice(len(self.names), p=self.shares)]
            self._turns.append((name, self._counts[name]))
            self._counts[name] += 1
        return self._turns[step]

    def tokens(self, step: int) -> int:
        """Count the tokens of a step, without padding."""
        name, own_step = self.turn(step)
        return self.plans[name].tokens(own_step)

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which all examples of all tasks could be seen once."""
        return sum(plan.steps_per_epoch for plan in self.plans.values())
