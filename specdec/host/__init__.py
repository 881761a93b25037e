"""What the host does beside tensors: files, locks, messages, imports that wait."""

from pathlib import Path

from .other_project import refuse_other_project

# Here, as every way into the package imports this one, also where the other project's `__init__.py` has replaced ours.
refuse_other_project(Path(__file__).parents[2])
