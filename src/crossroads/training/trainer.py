"""A network on its way: batches, optimizer, running average, and the state that a kill leaves.

Randomness is drawn anew at the start of every epoch from the seed and the epoch's number, so that
a state is nothing but tensors and a place in an epoch. Shapes: N positions, n of a batch.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from crossroads.artifacts import load_tensors, save_tensors
from crossroads.routing.routers.neural import NeuralRouter, build_network
from crossroads.training.config import DTYPES, FitConfig
from crossroads.training.rows import Rows
from crossroads.training.statistics import input_statistics
from crossroads.training.workers import Workers

Loss = Callable[[Tensor, Tensor], Tensor]
_SCORE_ROWS = 8192
_SAVE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is: `batch` batches of `epoch` are done, with this sum of losses."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0


class Trainer:
    """A network, its running average and its optimizer over one set of rows."""

    def __init__(
        self,
        rows: Rows,
        targets_N: np.ndarray,
        config: FitConfig,
        network_values: Mapping[str, Any],
        loss: Loss,
        workers: Workers,
    ) -> None:
        """Make an untrained network with the rows' statistics."""
        self.rows, self.config, self.loss, self.workers = rows, config, loss, workers
        self.targets_N = torch.from_numpy(targets_N)
        self.device = workers.device(config.device)
        torch.manual_seed(config.seed)
        network = build_network(config.architecture, network_values)
        if config.normalise:
            network.set_statistics(*input_statistics(rows, config.inputs))  # type: ignore[operator]
        self.network = network.to(self.device)
        self.averaged = copy.deepcopy(self.network) if config.average else self.network
        self.best: dict[str, Tensor] = {}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the memory of 56 M numbers instead of several
        )
        self.batches = -(-len(rows) // config.batch_size)
        self.steps = 0
        self.place = Place()

    def epoch(self, number: int, save: Callable[[], None]) -> float:
        """Go once over the rows in an order of the epoch's own; return the mean loss.

        `save` is called now and then, when the state is one that can be gone on from.
        """
        if self.place.epoch != number:
            self.place = Place(number)
            torch.manual_seed(_mixed(self.config.seed, number, self.workers.rank))
        order = np.random.default_rng([self.config.seed, number]).permutation(len(self.rows))
        size, saved = self.config.batch_size, time.monotonic()
        starts = range(self.place.batch * size, len(order), size)
        self.network.train()
        for rows_n, features, count in self._batches(
            order[start : start + size] for start in starts
        ):
            loss = self._update(rows_n, features, count)
            self.place = Place(number, self.place.batch + 1, self.place.loss + loss)
            if time.monotonic() - saved > _SAVE_SECONDS:
                save()
                saved = time.monotonic()
        return self.workers.sum(self.place.loss) / self.batches

    def _batches(
        self, parts: Iterator[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor], int]]:
        """Yield this process's rows of each batch and their features, read one batch ahead."""

        def load(rows_n: np.ndarray) -> tuple[np.ndarray, dict[str, Tensor], int]:
            own_n = self.workers.stripe(rows_n)
            return own_n, self.rows.features(own_n, self.config.inputs), len(rows_n)

        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for part in parts:
                following = reader.submit(load, part)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def _update(self, rows_n: np.ndarray, features: Mapping[str, Tensor], count: int) -> float:
        """Take one step; return this process's part of the batch's mean loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate_factor()
        self.optimizer.zero_grad()
        part = 0.0
        if len(rows_n):
            placed = {name: value.to(self.device) for name, value in features.items()}
            loss = self._loss(rows_n, placed) * (len(rows_n) / count)
            loss.backward()  # type: ignore[no-untyped-call]
            part = float(loss.detach())
        self.workers.sum_gradients(self.network.parameters())
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        self.steps += 1
        self._average()
        return part

    def _loss(self, rows_n: np.ndarray, features: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of some rows, with the auxiliary one where it is asked for."""
        targets_n = self.targets_N[torch.from_numpy(rows_n)].to(self.device)
        with self._arithmetic():
            if not self.config.auxiliary:
                return self.loss(self.network(features).float(), targets_n)
            logits_n2 = self.network.outputs(features).float()  # type: ignore[operator]
        other_n = 1 - torch.from_numpy(self.rows.large_probability_N[rows_n]).to(self.device)
        known_n = torch.isfinite(other_n)
        auxiliary = nn.functional.binary_cross_entropy_with_logits(
            logits_n2[known_n, 1], other_n[known_n].clamp(0, 1), reduction="sum"
        ) / len(rows_n)
        return self.loss(logits_n2[:, 0], targets_n) + self.config.auxiliary * auxiliary

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, DTYPES[self.config.dtype], enabled=self.config.dtype != "float32"
        )

    def _rate_factor(self) -> float:
        """Return the share of the learning rate at this step.

        One cycle (Smith and Topin, arXiv 1708.07120): cosine from 1/25 up over the first tenth of
        the steps, then cosine down to almost nothing.
        """
        if self.config.schedule == "constant":
            return 1.0
        total = max(self.config.epochs * self.batches, 2)
        top = max(1, total // 10)
        if self.steps < top:
            return _cosine(1 / 25, 1.0, self.steps / top)
        return _cosine(1.0, 1e-5, (self.steps - top) / max(1, total - 1 - top))

    @torch.no_grad()
    def _average(self) -> None:
        """Move the average towards the network's weights (exponential Polyak averaging)."""
        if not self.config.average:
            return
        # A young average forgets faster, so that it is not held back by the initial weights.
        decay = min(self.config.average, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
        for mean, current in pairs:
            mean.lerp_(current, 1 - decay)

    def logits(self, rows: Rows) -> np.ndarray:
        """Return the averaged network's logits [N], float32."""
        network = self.averaged.eval()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(rows), _SCORE_ROWS):
                features = rows.features(slice(start, start + _SCORE_ROWS), self.config.inputs)
                placed = {name: value.to(self.device) for name, value in features.items()}
                parts.append(network(placed).float().cpu())
        self.network.train()
        values: np.ndarray = torch.cat(parts).numpy()
        return values

    def keep(self) -> None:
        """Take the averaged weights as the best so far."""
        self.best = {k: v.detach().cpu().clone() for k, v in self.averaged.state_dict().items()}

    def best_router(self) -> NeuralRouter:
        """Return the best weights as a router."""
        network = copy.deepcopy(self.averaged).cpu()
        network.load_state_dict(self.best)
        return NeuralRouter(self.config.architecture, network)

    # What a kill leaves

    def tensors(self) -> dict[str, Tensor]:
        """Return the state's tensors."""
        found = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.config.average:
            found |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        found |= {f"best.{k}": v for k, v in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            found |= {f"adam.{number}.{k}": v for k, v in state.items()}
        found["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def restore(self, tensors: Mapping[str, Tensor], steps: int, place: Place) -> None:
        """Take a state that `tensors` gave."""
        self.network.load_state_dict(_under("network.", tensors))
        if self.config.average:
            self.averaged.load_state_dict(_under("averaged.", tensors))
        self.best = _under("best.", tensors)
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("adam.", tensors).items():
            number, key = name.split(".", 1)
            adam.setdefault(int(number), {})[key] = value
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**own, "state": adam})
        torch.set_rng_state(tensors["random"])
        if "random_cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"], self.device)
        self.steps, self.place = steps, place


class Saved:
    """A run's state on disk; a process among several keeps its own."""

    def __init__(self, folder: Path) -> None:
        """Keep the state in `folder`."""
        self._folder = folder
        self._written = time.monotonic()

    def _path(self, trainer: Trainer) -> Path:
        return self._folder / f"state-{trainer.workers.rank}.safetensors"

    def store(
        self, trainer: Trainer, history: Sequence[Mapping[str, float]], *, now: bool = False
    ) -> None:
        """Write the state if the last one is old, or `now`."""
        if not now and time.monotonic() - self._written < _SAVE_SECONDS:
            return
        facts = {"history": list(history), "steps": trainer.steps, "place": asdict(trainer.place)}
        text = json.dumps(facts).encode()
        tensors = {
            **trainer.tensors(),
            "facts": torch.frombuffer(bytearray(text), dtype=torch.uint8),
        }
        save_tensors(self._path(trainer), tensors, {})
        self._written = time.monotonic()

    def restore(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Put the trainer where the state is, if there is one; return the history."""
        path = self._path(trainer)
        if not path.exists():
            return []
        tensors = load_tensors(path, "training state")
        facts = json.loads(bytes(tensors.pop("facts").tolist()))
        trainer.restore(tensors, facts["steps"], Place(**facts["place"]))
        history: list[dict[str, Any]] = facts["history"]
        return history


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


def _mixed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)
