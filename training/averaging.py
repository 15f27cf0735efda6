"""Weight averaging: an epoch is validated and kept with the moving average of the weights.

Keras' optimizers keep the exponential moving average of the weights (`use_ema`). Its callback
`SwapEMAWeights` swaps both by adding and subtracting, which rounds them: a run that was resumed
would end with other weights. These callbacks swap them exactly, and for our own callbacks: what
comes between the two sees the averages, everything else the weights that are trained.
"""

import numpy as np

from training.backend import keras


def swap_averages(model: keras.Model) -> None:
    """Exchange the trainable weights of the compiled `model` with their averages, to the bit."""
    # In mixed float16, Keras wraps the optimizer.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
        values = np.array(keras.ops.convert_to_numpy(variable))
        variable.assign(average)
        average.assign(values)


class InsertAverages(keras.callbacks.Callback):
    """Swap the averages into the model for validation, or at the end of an epoch without one.

    Attributes:
        inserted: whether they are in the model.
    """

    def __init__(self):
        """Begin with the weights that are trained in the model."""
        super().__init__()
        self.inserted = False

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Swap before validation; Keras calls this."""
        self._insert()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Swap where nothing was validated; Keras calls this."""
        self._insert()

    def _insert(self) -> None:
        if not self.inserted:
            swap_averages(self.model)
            self.inserted = True


class RemoveAverages(keras.callbacks.Callback):
    """Swap the averages out of the model again, at the end of an epoch."""

    def __init__(self, insert: InsertAverages):
        """Undo what `insert` did, which comes before this callback."""
        super().__init__()
        self.insert = insert

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Swap back; Keras calls this."""
        swap_averages(self.model)
        self.insert.inserted = False
