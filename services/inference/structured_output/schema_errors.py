"""What every module of this package raises where a schema or a grammar cannot be used."""


class SchemaRefused(Exception):
    """The message is for the caller: which place, what is wrong with it. `output_formats` makes it a BadRequest with the field's name."""
