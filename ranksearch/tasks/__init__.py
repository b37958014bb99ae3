"""What the user brings: data, fine-tuning, metrics. ``TASKS`` is the table of task types; data sets, networks and
training from scratch are beside it."""

from ranksearch.tasks._fine_tune import FineTuning
from ranksearch.tasks.classification import Classification
from ranksearch.tasks.language import LanguageModel
from ranksearch.tasks.loss import Agreement, FromLoss
from ranksearch.tasks.task import Diverged, InvalidMetrics, Metric, Task, Training, declared_metrics, measured

TASKS: tuple[type[Task], ...] = (Classification, LanguageModel, FromLoss, Agreement)

__all__ = [
    "TASKS", "Agreement", "Classification", "Diverged", "FineTuning", "FromLoss", "InvalidMetrics", "LanguageModel", "Metric", "Task",
    "Training", "declared_metrics", "measured",
]  # fmt: skip
