"""Ignite handlers that save a run so that it can be killed at any moment: its state, and its best weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from shared_components.errors import InputError
from shared_components.output_lock import lock_folder, release_folder
from shared_components.training.files import load_safely, load_state_dict, save_atomically

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"


class TrainingState:
    """Save everything a run needs to go on after each epoch, and go on from it when asked to.

    ``<output_dir>/training_state.pt`` holds the state dict of every object given, the epoch and the best validation
    metric. It is replaced at once when an epoch is complete, with its validation and all that other handlers write; a
    run that is killed loses the epoch it was in. Place the handler before those that ask at the start which epoch the
    run goes on from. An output folder serves one run at a time.

    Args:
        output_dir: where the state is kept.
        objects: name to object with ``state_dict`` and ``load_state_dict``: networks, optimizers, schedules, EMA;
            ``None`` is left out.
        settings: what must not change between a run and its continuation, name to plain value.
        evaluator: the validation's evaluator, which knows the best metric.
        resume: go on from the saved state.
        overwrite: start anew although there is a saved state.

    Raises:
        InputError: when the run starts: nothing to resume, a saved state that would be lost, changed settings,
            another run in the folder, or a file that is corrupt.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike,
        objects: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        evaluator: Engine | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(output_dir) / STATE_FILE
        self.objects = {name: item for name, item in objects.items() if item is not None}
        self.settings = dict(settings or {})
        self.evaluator = evaluator
        self.resume = resume
        self.overwrite = overwrite

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer.

        Raises:
            InputError: there is no step in an epoch, which MONAI's engines pass over without starting.
        """
        if engine.state.epoch_length == 0:
            raise InputError(
                "no step in an epoch: drop_last leaves out the training cases, which are fewer than batch_size; give a "
                "smaller --batch_size or --drop_last False"
            )
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._release)

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            self._claim()
        try:
            self._begin(engine)
        except InputError:
            self._release(engine)
            raise
        if not engine.has_event_handler(self.save, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)  # by now the last of them

    def _begin(self, engine: Engine) -> None:
        if self.resume:
            self.load(engine)
        elif self.path.exists() and not self.overwrite:
            raise InputError(
                f"{self.path}: the state of an earlier run; go on with --resume True, keep it by choosing another "
                "--output_dir, or replace it with --overwrite True"
            )

    def _claim(self) -> None:
        lock_folder(self.path.parent)
        for name in (self.path.name, "model.pt"):  # of a run that was killed while it saved
            for left in self.path.parent.glob(f".*-{name}"):
                left.unlink(missing_ok=True)

    def _release(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            release_folder(self.path.parent)

    def save(self, engine: Engine) -> None:
        """Write the state of a complete epoch."""
        if idist.get_rank() > 0:
            return
        state: dict[str, Any] = {name: item.state_dict() for name, item in self.objects.items()}
        state["progress"] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        state["settings"] = self.settings
        if self.evaluator is not None:
            best = self.evaluator.state
            state["best"] = {"metric": float(best.best_metric), "epoch": int(best.best_metric_epoch)}
        save_atomically(state, self.path)

    def load(self, engine: Engine) -> None:
        """Bring every object, the epoch and the best metric back."""
        if not self.path.is_file():
            raise InputError(
                f"{self.path}: no saved state to resume; start without --resume True, or check --output_dir"
            )
        state = self._read()
        self._compare(state.get("settings", {}), set(state) - {"progress", "settings", "best"})
        for name, item in self.objects.items():
            self._bring_back(name, item, state[name])
        engine.state.epoch = state["progress"]["epoch"]
        engine.state.iteration = state["progress"]["iteration"]
        if engine.state.epoch >= engine.state.max_epochs:
            logger.warning(
                "%s: all %d epochs are done, what is left is the report; to train on, start in a new --output_dir with "
                "--ckpt_path %s",
                self.path,
                engine.state.epoch,
                self.path.parent / "model.pt",
            )
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best"]["metric"]
            self.evaluator.state.best_metric_epoch = state["best"]["epoch"]
        logger.info("%s: going on after epoch %d", self.path, engine.state.epoch)

    def _read(self) -> dict[str, Any]:
        try:
            state = load_safely(self.path)
        except InputError as error:
            best = self.path.parent / "model.pt"
            hint = f"; or go on from the best weights in a new --output_dir with --ckpt_path {best}"
            raise InputError(f"{error}{hint if best.is_file() else ''}") from error
        if not isinstance(state, dict) or "progress" not in state:
            raise InputError(f"{self.path}: no state of a training; give --resume the folder that a training wrote")
        return state

    def _bring_back(self, name: str, item: Any, state: Any) -> None:
        try:
            item.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:  # networks, optimizers, schedules
            lines = [line.strip() for line in str(error).splitlines()]
            raise InputError(
                f"{self.path}: the saved {name} differs from this run's ({_shorten(' '.join(lines))}); give the same "
                "settings, or start anew in another --output_dir"
            ) from error

    def _compare(self, saved: Mapping[str, Any], names: set[str]) -> None:
        differences = [
            f"{key} was {saved.get(key)!r}, is {self.settings.get(key)!r}"
            for key in sorted({*saved, *self.settings})
            if saved.get(key) != self.settings.get(key)
        ]
        differences += [f"{name} is only on one side" for name in sorted(names ^ set(self.objects))]
        if differences:
            raise InputError(
                f"{self.path}: the saved run had other settings ({'; '.join(differences)}); give the same ones, or "
                "start anew in another --output_dir"
            )


class BestWeights:
    """Keep the weights that validated best as a flat state dict, ready for inference.

    Place the handler in the evaluator, whose key metric decides (larger is better). The file is replaced only by better
    weights: with a validation before the first epoch, weights loaded at the start are kept until they are beaten.

    Args:
        path: of the file, such as ``<output_dir>/model.pt``.
        network: whose state dict is saved: the network that was evaluated.
    """

    def __init__(self, path: str | os.PathLike, network: nn.Module) -> None:
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save if the evaluation that just ended was the best so far."""
        if engine.state.best_metric_epoch != engine.state.epoch or idist.get_rank() > 0:
            return
        save_atomically({name: value.cpu() for name, value in self.network.state_dict().items()}, self.path)
        state = engine.state
        logger.info("%s: best weights so far, %s %.4f", self.path, state.key_metric_name, state.best_metric)


class LoadWeights:
    """Load a flat state dict into a network when a run starts, strictly.

    Of several processes none reads before all are here: the first may still be writing the file (`BestWeights`).
    ``engine.state.weights`` says afterwards which file it was, or which files.

    Args:
        path: of the file, or of several, one for each of the ``networks`` of a
            `shared_components.diffusion.deep_ensemble.DeepEnsemble`.
        network: whose weights they are.

    Raises:
        InputError: several files for a network that takes one.
    """

    def __init__(self, path: str | os.PathLike | Sequence[str | os.PathLike], network: nn.Module) -> None:
        self.paths = [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(file) for file in path]
        self.networks = list(network.networks) if len(self.paths) > 1 and hasattr(network, "networks") else [network]
        if len(self.networks) != len(self.paths):
            raise InputError(
                f"ckpt_path: {len(self.paths)} files, and {type(network).__name__} takes the weights of "
                f"{len(self.networks)}; a list is for inference.json and evaluate.json of cdal_* and medsegdiff_*, a "
                "training starts from one"
            )

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        """Load the weights.

        Raises:
            InputError: no such file, corrupt, or weights of another network; the message names what differs.
        """
        idist.barrier()
        for path, network in zip(self.paths, self.networks):
            _load_weights(path, network)
        if engine is not None:
            files = [str(path) for path in self.paths]
            engine.state.weights = files[0] if len(files) == 1 else files


def _load_weights(path: Path, network: nn.Module) -> None:
    weights = load_state_dict(path)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        remedy = "give the configurations, labels, channels and sizes that they were trained with"
        expected = f"weights of another network: {remedy}; expected those of this {type(network).__name__}"
        raise InputError(f"{path}: {expected}, found {_shorten(' '.join(lines))}") from error
    logger.info("%s: weights loaded", path)


def _shorten(text: str) -> str:
    return text if len(text) <= 600 else text[:600] + " ..."
