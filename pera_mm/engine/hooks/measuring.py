"""The times at which a run measures what it has learned."""

from mmengine.hooks import Hook
from mmengine.runner import Runner


class MeasuringHook(Hook):
    """The base of hooks that measure before training, every ``interval`` epochs and at the end."""

    interval: int  # epochs

    def before_train(self, runner: Runner) -> None:
        """Measure the random network, unless the run is resumed."""
        if runner.iter == 0:
            self.measure(runner, epoch=0)

    def after_train_epoch(self, runner: Runner) -> None:
        """Measure every ``interval`` epochs and after the last."""
        if self.every_n_epochs(runner, self.interval) or self.is_last_train_epoch(runner):
            self.measure(runner, epoch=runner.epoch + 1)

    def measure(self, runner: Runner, epoch: int) -> None:
        """Measure after ``epoch`` finished epochs, on every rank."""
        raise NotImplementedError

    @staticmethod
    def write(runner: Runner, scores: dict[str, float], epoch: int) -> None:
        """Write the scores to the message hub and the visualizer."""
        runner.message_hub.update_scalars(scores)
        runner.visualizer.add_scalars(scores, step=epoch)
