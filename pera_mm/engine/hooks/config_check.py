"""A check that finds a config which cannot train before the first step, not after an hour."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from pera_mm.engine.hooks.teacher import inner_model
from pera_mm.registry import HOOKS


@HOOKS.register_module()
class ConfigCheckHook(Hook):
    """Check before the run that batch size, crops and patches fit the model and its losses.

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
