"""The metrics of ``task='rate'`` by name, without JAX: the report reads them, too."""

RATE_METRICS = ("auc", "log_loss", "accuracy", "f1", "precision", "recall", "rmse", "mae")
LOWER_IS_BETTER = ("log_loss", "rmse", "mae")
