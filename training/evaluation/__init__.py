"""How good a checkpoint is: metrics, calibration, figures and the model card."""
