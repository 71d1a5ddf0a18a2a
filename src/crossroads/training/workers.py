"""One or several processes that train one router.

Every process reads its own stripe of each batch; gradients are summed, so that several processes
take the steps that one would. Started by `torchrun` or `accelerate launch`, which set the
environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.errors import EngineError


class Workers:
    """This process among those that train together."""

    def __init__(self, rank: int = 0, world: int = 1, accelerator: Any = None) -> None:
        """Be process `rank` of `world`."""
        self.rank, self.world, self._accelerator = rank, world, accelerator

    @classmethod
    def of_environment(cls, device: str) -> Workers:
        """Return the workers that the launcher announced; one without a launcher.

        Raises:
            EngineError: several processes, and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        try:
            from accelerate import Accelerator  # noqa: PLC0415  optional
        except ImportError as error:
            raise EngineError(
                "training in several processes needs accelerate; "
                "pip install 'crossroads-lm[transformers]'"
            ) from error
        accelerator = Accelerator(cpu=device == "cpu")
        return cls(accelerator.process_index, accelerator.num_processes, accelerator)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def device(self, device: str) -> torch.device:
        """Return where this process computes."""
        found: torch.device = (
            torch.device(device) if self._accelerator is None else self._accelerator.device
        )
        return found

    def stripe(self, rows_n: np.ndarray) -> np.ndarray:
        """Return this process's part of a batch."""
        return rows_n[self.rank :: self.world]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up every process's gradients, in place; missing ones count as zero."""
        if self.world == 1:
            return
        chosen = [p for p in parameters if p.requires_grad]
        flat = torch.cat(
            [torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in chosen]
        )
        total = self._accelerator.reduce(flat, reduction="sum")
        start = 0
        for parameter in chosen:
            stop = start + parameter.numel()
            parameter.grad = total[start:stop].view_as(parameter).clone()
            start = stop

    def sum(self, value: float) -> float:
        """Return the sum of every process's number."""
        if self.world == 1:
            return value
        total: Tensor = self._accelerator.reduce(
            torch.tensor([value], dtype=torch.float64, device=self._accelerator.device), "sum"
        )
        return float(total)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process through, then the others: they find the files that it wrote."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
