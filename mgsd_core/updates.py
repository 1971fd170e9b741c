"""How gradients become weights: in one process, in several, split by FSDP2, or by DeepSpeed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from accelerate import Accelerator

from mgsd_core.config import ComputeConfig, StageConfig
from mgsd_core.processes import like, shard, sum_gradients, wants_deepspeed, wants_shards, whole


class Updates:
    """AdamW on a module's trained parameters.

    Attributes:
        module: computes losses; call it, not what it was made from.
        parameters: what is trained, by name.
        in_step: every process must make the same passes.
        scale: of a loss, so that gradients are summed over the processes, not averaged.
    """

    in_step = False

    def __init__(
        self,
        processes: Accelerator,
        module: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        config: StageConfig,
    ) -> None:
        self.module = module
        self.parameters = parameters
        self._processes = processes
        # What splits parameters or moments divides gradients by the number of processes.
        self.scale = float(processes.num_processes) if self.in_step else 1.0
        self._clip = config.clip
        self._optimizer = torch.optim.AdamW(
            parameters.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add a loss's gradient; `last` of the step or not."""
        (loss * self.scale).backward()

    def gradient_norm(self) -> float | None:
        """Sum the gradients over the processes, clip them and return the norm before, if known."""
        sum_gradients(self._processes, self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._clip)
        return float(whole(norm))

    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, which are then gone."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def moments(self) -> dict[str, torch.Tensor]:
        """Return what AdamW remembers, whole, as `NAME.step`, `NAME.exp_avg`, `NAME.exp_avg_sq`.

        All processes must call this.
        """
        return {
            f"{name}.{key}": whole(value)
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state[parameter].items()
        }

    def restore(self, moments: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `moments` returned; the parameters are as they were then.

        Raises:
            KeyError: a value is missing.
        """
        for name, parameter in self.parameters.items():
            if f"{name}.step" in moments:
                self._optimizer.state[parameter] = {
                    # Fused AdamW counts where the parameter is; a count is never split.
                    "step": moments[f"{name}.step"].to(parameter.device),
                    "exp_avg": like(moments[f"{name}.exp_avg"], parameter),
                    "exp_avg_sq": like(moments[f"{name}.exp_avg_sq"], parameter),
                }


class ShardedUpdates(Updates):
    """Parameters, gradients and moments split over the processes (FSDP2)."""

    in_step = True


class DeepSpeedUpdates(Updates):
    """Gradients and moments split over the processes (ZeRO stage 2)."""

    in_step = True

    def __init__(
        self,
        processes: Accelerator,
        module: torch.nn.Module,
        parameters: Mapping[str, torch.nn.Parameter],
        config: StageConfig,
    ) -> None:
        with redirect_stdout(sys.stderr):  # where it says what it has built
            import deepspeed

            super().__init__(processes, module, parameters, config)
            self._engine, self._zero, *_ = deepspeed.initialize(
                model=module,
                optimizer=self._optimizer,
                config={
                    "train_micro_batch_size_per_gpu": 1,  # it only counts with it
                    "gradient_accumulation_steps": 1,
                    "gradient_clipping": config.clip,
                    "zero_optimization": {"stage": 2},
                    "zero_allow_untested_optimizer": True,
                },
                dist_init_required=False,
            )
        self.module = self._engine

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """See `Updates`."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.scale)

    def gradient_norm(self) -> None:
        """Return nothing: DeepSpeed clips in its step."""

    def step(self, rate: float) -> None:
        """See `Updates`."""
        for group in self._zero.param_groups:
            group["lr"] = rate
        self._engine.step()

    def moments(self) -> dict[str, torch.Tensor]:
        """See `Updates`."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = next(iter(self._optimizer.state.values()))["step"].cpu()
        found = {}
        for name, parameter in self.parameters.items():
            found[f"{name}.step"] = steps.clone()
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{name}.{key}"] = whole(safe_get_full_optimizer_state(parameter, key))
        return found

    def restore(self, moments: Mapping[str, torch.Tensor]) -> None:
        """See `Updates`."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        weights = {n: p.detach().clone() for n, p in self.parameters.items()}
        # Its moments come into being with its first step, which at this rate changes nothing.
        nothing = sum((p * 0.0).sum() for p in self.parameters.values())
        assert isinstance(nothing, torch.Tensor)
        self.backward(nothing, last=True)
        self.step(0.0)
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, weights[name])
            with torch.no_grad():
                parameter.copy_(weights[name])
            for key in ("exp_avg", "exp_avg_sq"):
                value = moments[f"{name}.{key}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, key)
        for state in self._optimizer.state.values():
            state["step"].copy_(moments[f"{name}.step"])


def start_updates(
    processes: Accelerator,
    module: torch.nn.Module,
    layers: list[torch.nn.Module],
    config: StageConfig,
    compute: ComputeConfig,
    split: bool,
) -> Updates:
    """Return what updates a module's parameters that require gradients.

    Args:
        processes: that train together; how they were launched decides what is split.
        module: computes losses.
        layers: parts of it that are gathered one after another where parameters are split.
        config: of the stage.
        compute: precision.
        split: parameters or moments may be split; a model can be so once.
    """
    kind: type[Updates] = Updates
    if split and wants_shards(processes):
        shard(processes, module, layers, compute)
        kind = ShardedUpdates
    elif split and wants_deepspeed(processes):
        kind = DeepSpeedUpdates
    model: Any = module.model
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return kind(processes, module, parameters, config)
