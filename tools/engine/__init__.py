"""The engine as wheels, made without a compiler."""
