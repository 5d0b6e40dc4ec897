"""Tasks: what goes into a model, which outputs count, and how they are compared and measured.

`base.Task` is the interface; `TASKS` are the named tasks. All stages get a model's outputs, losses
and metric through it, and know nothing else about the purpose of the model.
"""

from updp.arguments import checked
from updp.errors import UserError
from updp.tasks.base import Task
from updp.tasks.classification import Classification, MultiLabel
from updp.tasks.dense import RegressionTask, Segmentation
from updp.tasks.detection import Detection
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
    Detection(),
)
TASKS = {task.name: task for task in _BUILT_IN}

__all__ = [
    "CLASSIFICATION",
    "TASKS",
    "CausalLM",
    "Classification",
    "Metric",
    "Segmentation",
    "Task",
    "find_task",
]


@checked()
def find_task(task: Task | str) -> Task:
    """Find a built-in task by its name; a task is returned unchanged. Raises UserError.

    >>> updp.find_task("segmentation").metric.name
    'mean IoU'
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise UserError(f"task '{task}' is unknown: take one of {', '.join(TASKS)}")
    return TASKS[task]
