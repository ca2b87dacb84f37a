"""The error that all modules of this package raise for an unusable schema or grammar."""


class SchemaRefused(Exception):
    """The message, for the caller, has the place and the reason. `output_formats` turns it into a BadRequest with the field's name."""
