"""A recipe for `model.generate(..., custom_generate=...)`: see the library's page on custom generation."""

import specdec


def generate(model, inputs=None, input_ids=None, drafter="auto", **kwargs):
    """Write what `model.generate` writes, in fewer passes; arguments as in `specdec.generate`."""
    known = {name: value for name, value in kwargs.items() if value is not None}
    return specdec.generate(model, input_ids if inputs is None else inputs, drafter, **known)
