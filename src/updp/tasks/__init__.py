"""Tasks: what goes into a model, which outputs count, and how they are compared and measured.

`base.Task` is the interface; `TASKS` are those with a name. All stages reach a model's outputs, its
losses and its metric by it, and know nothing else of what the model is for.
"""

from updp.errors import UserError
from updp.tasks.base import Task
from updp.tasks.classification import Classification, MultiLabel
from updp.tasks.dense import RegressionTask, Segmentation
from updp.tasks.metric import Metric
from updp.tasks.text import CausalLM, TokenClassification

CLASSIFICATION = Classification()
_BUILT_IN = (
    CLASSIFICATION,
    MultiLabel(),
    RegressionTask(),
    Task(),
    Segmentation(),
    TokenClassification(),
    CausalLM(),
)
TASKS = {task.name: task for task in _BUILT_IN}

__all__ = ["CLASSIFICATION", "TASKS", "Classification", "Metric", "Task", "find_task"]


def find_task(task: Task | str) -> Task:
    """A task, by name or as it is. Raises UserError for an unknown name."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise UserError(f"task '{task}' is unknown: take one of {', '.join(TASKS)}")
    return TASKS[task]
