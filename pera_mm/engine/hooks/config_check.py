"""A check that finds a config which cannot train before the first step, not after an hour."""

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class TotalBatchHook(Hook):
    """Say in one warning that steps have another number of images than the config intends."""

    def before_train(self, runner: Runner) -> None:
        """Multiply and compare."""
        # loader.batch_size is None under a batch sampler of the config's own.
        batch_size = runner.train_dataloader.batch_sampler.batch_size
        warning = other_total_batch(runner.cfg, batch_size, get_world_size())
        if warning is not None:
            runner.logger.warning(warning)


@HOOKS.register_module()
class ConfigCheckHook(TotalBatchHook):
    """Check before the run that batch size, crops and patches fit the model and its losses.

    A run whose steps have another number of images than the config intends trains, too; one
    warning in the log says so.

    Raises:
        ValueError: for one image per device with KoLeo, also in the last batch of an epoch; for a
            pipeline whose patch size is not the backbone's; for a crop that is not a multiple of
            the patch.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the batch size and one packed sample."""
        model = inner_model(runner)
        loader = runner.train_dataloader
        model.check_batch_size(loader.batch_size)
        if not loader.drop_last and (rest := len(loader.sampler) % loader.batch_size):
            model.check_batch_size(rest)
        for group in loader.dataset[0]['inputs'].values():
            height, width = group.pixels.shape[-3:-1]
            model.check_split(height, width, group.split)
        super().before_train(runner)


def other_total_batch(cfg: Config, batch_size: int, devices: int) -> str | None:
    """Say in one line that a step has another number of images than the config intends.

    Args:
        cfg: with the intended number in ``auto_scale_lr.base_batch_size``; without it any is right.
        batch_size: images per device.
        devices: number of devices.

    Returns:
        The line; None if the number is right.
    """
    intended = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    images = batch_size * devices * accumulated
    if intended is None or images == intended:
        return None
    return (f'A step has {images} images (batch_size {batch_size} x {devices} devices x '
            f'accumulative_counts {accumulated}), but this config is meant for {intended}: change '
            'one of the three, or lower or raise the learning rate with the images.')
