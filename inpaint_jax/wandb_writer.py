"""An optional copy of scalars and pictures in Weights & Biases: `--config.wandb.project=NAME`."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import ml_collections
import numpy as np

from inpaint_jax import run_folder


def library(config: ml_collections.ConfigDict) -> ModuleType:
    """Returns the package `wandb`.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"config.wandb.project = {config.wandb.project!r} needs Weights & Biases: pip install wandb, "
            "or leave the project empty"
        ) from error
    return wandb


class WandbWriter:
    """Writes scalars and pictures to Weights & Biases as well.

    A run that goes on keeps its identity, stored in the run folder. Values are logged against the field `step`, so
    that steps that are done again after a kill fall on the same places in its plots.

    Args:
        config: the whole config; `config.wandb` names project and mode.
        workdir: the run folder; an offline run lies below it in `wandb/`.

    Raises:
        ValueError: the package is not installed, or the service refuses.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: Path):
        self._wandb = wandb = library(config)
        identity = workdir / run_folder.WANDB_ID
        if not identity.exists():
            run_folder.write_text(identity, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=config.wandb.project,
                name=workdir.name,
                id=identity.read_text().strip(),
                resume="allow" if config.wandb.mode == "online" else None,
                mode=config.wandb.mode,
                dir=str(workdir),
                config=config.to_dict(),
                # The console belongs to the run's own log; the machine's load is not asked for.
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
            )
        except (wandb.errors.UsageError, wandb.errors.CommError) as error:
            raise ValueError(
                f"Weights & Biases cannot be reached ({error}): run `wandb login`, "
                "or set config.wandb.mode = 'offline' and `wandb sync` later"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs scalars under their names."""
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture, uint8 (H, W, 3)."""
        self._run.log({"step": step, name: self._wandb.Image(picture)})

    def close(self) -> None:
        """Returns when everything is written or sent."""
        self._run.finish()
