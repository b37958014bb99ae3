"""What the user brings: data, fine-tuning, metrics. ``TASKS`` is the table of task types; data sets, networks and
training from scratch are beside it."""

from ranksearch.tasks.classification import Classification
from ranksearch.tasks.language import LanguageModel
from ranksearch.tasks.task import Diverged, InvalidMetrics, Metric, Task, Training, measured

TASKS: tuple[type[Task], ...] = (Classification, LanguageModel)

__all__ = ["TASKS", "Classification", "Diverged", "InvalidMetrics", "LanguageModel", "Metric", "Task", "Training", "measured"]
