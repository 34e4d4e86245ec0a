"""From the ``[task]`` table of a federation file to the task that it names."""

from wardround_common.spec.federation import Classification, TaskSpec
from wardround_common.tasks.base import Task
from wardround_common.tasks.classification import ClassificationTask
from wardround_common.tasks.entities import EntityTask


def task_for(spec: TaskSpec) -> Task:
    """The task that a federation file names.

    Args:
        spec: its ``[task]`` table.
    """
    if isinstance(spec, Classification):
        return ClassificationTask(spec.labels)
    return EntityTask(spec.types)
