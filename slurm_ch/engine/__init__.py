"""A container, made in this process."""
